"""`lora-sft chat`: talk to a run, an adapter or a merged model in the terminal."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from lora_sft.cli.arguments import Commands, add_command, add_model_folder, positive
from lora_sft.errors import EXIT_DONE, ModelError
from lora_sft.processes.held_signals import signals_held

if TYPE_CHECKING:
    from lora_sft.serve.speaker import Sampling, Speaker

HELP = "Enter sends; /reset starts anew; /exit or Ctrl-D ends; Ctrl-C stops an answer."
Messages = list[dict[str, str]]


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "chat",
        run,
        "Talk to a run or a model in the terminal.",
        "Answers stream as they are made, and are greedy unless --temperature is given. "
        "Without a terminal every line of stdin is a turn.",
    )
    add_model_folder(parser)
    parser.add_argument(
        "--message", metavar="TEXT", help="answer this and end; - reads it from stdin"
    )
    parser.add_argument("--system", metavar="TEXT", help="a system message to begin with")
    parser.add_argument("--max-new-tokens", type=positive, metavar="N", default=512)
    parser.add_argument("--temperature", type=float, metavar="T", default=0.0, help="0: greedy")
    parser.add_argument("--top-p", type=float, metavar="P", default=1.0)
    parser.add_argument("--seed", type=int, metavar="N", help="of the sampling")
    parser.add_argument(
        "--chat-template-kwargs",
        metavar="JSON",
        type=_mapping,
        default={},
        help="for the chat template, over the recipe's: '{\"enable_thinking\": true}'",
    )


def run(arguments: argparse.Namespace) -> int:
    """Answer the one message, or read lines and answer them until the end of input."""
    from transformers import set_seed

    from lora_sft.serve.speaker import Sampling, find_target, load_speaker

    sampling = Sampling(arguments.max_new_tokens, arguments.temperature, arguments.top_p)
    speaker = load_speaker(find_target(arguments.folder))
    if arguments.seed is not None:
        set_seed(arguments.seed)
    chat = Chat(speaker, sampling, arguments.chat_template_kwargs, arguments.system)
    if arguments.message is not None:
        chat.say(sys.stdin.read() if arguments.message == "-" else arguments.message)
    else:
        _converse(chat)
    return EXIT_DONE


class Chat:
    """One conversation: what was said, and how answers are made."""

    def __init__(
        self,
        speaker: Speaker,
        sampling: Sampling,
        template_kwargs: dict[str, Any],
        system: str | None,
    ) -> None:
        self._speaker = speaker
        self._sampling = sampling
        self._template_kwargs = template_kwargs
        self._opening: Messages = [{"role": "system", "content": system}] if system else []
        self.reset()

    def reset(self) -> None:
        """Forget all but the system message."""
        self._messages = list(self._opening)

    def say(self, text: str) -> None:
        """Add a turn and print its answer on stdout, piece by piece.

        An answer that Ctrl-C stops stays in the conversation as far as it went.

        Raises: ModelError where the conversation is too long; the turn is taken back.
        KeyboardInterrupt once a stopped answer has ended.
        """
        asked = [*self._messages, {"role": "user", "content": text}]
        stream = self._speaker.answer(asked, self._sampling, self._template_kwargs)
        pieces: list[str] = []
        with signals_held(meanwhile=stream.stop):
            try:
                for piece in stream:
                    print(piece, end="", flush=True)
                    pieces.append(piece)
            finally:
                print(flush=True)
                self._messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]
        if stream.was_cut:
            print("(cut at the token limit; see --max-new-tokens)", file=sys.stderr)


def _converse(chat: Chat) -> None:
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print(HELP, file=sys.stderr)
    while (text := _read_line(is_terminal)) is not None:
        if text == "/reset":
            chat.reset()
        elif text:
            try:
                chat.say(text)
            except KeyboardInterrupt:
                if not is_terminal:
                    raise
            except ModelError as error:
                print(error, file=sys.stderr)
                if not is_terminal:
                    raise


def _read_line(is_terminal: bool) -> str | None:
    """One line of the user, or None at the end."""
    try:
        text = input("> " if is_terminal else "").strip()
    except EOFError:
        return None
    return None if text in ("/exit", "/quit") else text


def _mapping(text: str) -> dict[str, Any]:
    """A JSON object, for argparse."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value
