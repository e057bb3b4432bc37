"""`lora-sft chat`: talk to a run or a merged model in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lora_sft.pipeline import Speaker

HELP = "Enter sends; /reset starts anew; /exit or Ctrl-D ends."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("chat")(chat)


def chat(
    run: Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="A run, or a model folder.")],
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.", metavar="N")] = 512,
) -> None:
    """Talk to a run or a model in the terminal.

    Answers are greedy and stream as they are made.
    """
    from lora_sft.pipeline import load_speaker

    speaker = load_speaker(run)
    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    typer.echo(HELP, err=True)
    while (text := _read_line()) is not None:
        if text == "/reset":
            messages = list(opening)
        elif text:
            messages.append({"role": "user", "content": text})
            answer = _answer(speaker, messages, max_new_tokens)
            messages.append({"role": "assistant", "content": answer})


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
