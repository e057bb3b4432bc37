"""`lora-sft chat`: talk to a run or a merged model in the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from lora_sft.cli.arguments import Commands, add_command, add_model_folder, positive
from lora_sft.errors import EXIT_DONE

if TYPE_CHECKING:
    from lora_sft.pipeline import Speaker

HELP = "Enter sends; /reset starts anew; /exit or Ctrl-D ends."


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "chat",
        run,
        "Talk to a run or a model in the terminal.",
        "Answers are greedy and stream as they are made.",
    )
    add_model_folder(parser)
    parser.add_argument("--system", metavar="TEXT", help="a system message to begin with")
    parser.add_argument("--max-new-tokens", type=positive, metavar="N", default=512)


def run(arguments: argparse.Namespace) -> int:
    """Read lines and answer them until the end of input."""
    from lora_sft.pipeline import load_speaker

    speaker = load_speaker(arguments.folder)
    system = arguments.system
    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    print(HELP, file=sys.stderr)
    while (text := _read_line()) is not None:
        if text == "/reset":
            messages = list(opening)
        elif text:
            messages.append({"role": "user", "content": text})
            answer = _answer(speaker, messages, arguments.max_new_tokens)
            messages.append({"role": "assistant", "content": answer})
    return EXIT_DONE


def _read_line() -> str | None:
    """One line of the user, or None at the end."""
    try:
        text = input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None
    return None if text.strip() in ("/exit", "/quit") else text.strip()


def _answer(speaker: Speaker, messages: list[dict[str, str]], max_new_tokens: int) -> str:
    """Print the answer piece by piece on stdout and return it whole."""
    pieces = []
    for piece in speaker.stream(messages, max_new_tokens):
        print(piece, end="", flush=True)
        pieces.append(piece)
    print()
    return "".join(pieces)
