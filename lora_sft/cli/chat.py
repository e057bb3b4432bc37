"""`lora-sft chat`: chat with a run, an adapter or a merged model in the terminal."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from lora_sft.cli.arguments import (
    Commands,
    add_command,
    add_model_folder,
    add_trust,
    positive_integer,
)
from lora_sft.errors import EXIT_DONE, ModelError
from lora_sft.log import print_result
from lora_sft.processes.held_signals import signals_held

if TYPE_CHECKING:
    from lora_sft.serve.loaded_model import LoadedModel, Sampling

HELP = (
    "Enter sends your message. /reset starts a new conversation. /exit or Ctrl-D ends the chat. "
    "Ctrl-C stops an answer."
)
Messages = list[dict[str, str]]


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "chat",
        run,
        "Chat with a run or a model in the terminal.",
        "The answer appears token by token. Decoding is greedy unless --temperature is given. If "
        "stdin is not a terminal, each of its lines is one user message.",
    )
    add_model_folder(parser)
    add_trust(parser)
    parser.add_argument(
        "--message",
        metavar="TEXT",
        help="answer this one message and exit; - reads the message from stdin",
    )
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument(
        "--max-new-tokens",
        type=positive_integer,
        metavar="N",
        default=512,
        help="longest answer, in tokens (default: 512)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        default=0.0,
        help="sampling temperature (default: 0, greedy decoding)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        default=1.0,
        help="sample from the most probable tokens whose probabilities sum to P (default: 1)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the sampling")
    parser.add_argument(
        "--chat-template-kwargs",
        metavar="JSON",
        type=_parse_json_object,
        default={},
        help="arguments for the chat template, such as '{\"enable_thinking\": true}'; they "
        "override those of the recipe",
    )


def run(arguments: argparse.Namespace) -> int:
    """Answer the message of `--message`, or answer the lines of stdin until it ends."""
    from transformers import set_seed

    from lora_sft.serve.loaded_model import Sampling, find_model_folder, load_model

    sampling = Sampling(arguments.max_new_tokens, arguments.temperature, arguments.top_p)
    model = load_model(
        find_model_folder(arguments.folder, trust_remote_code=arguments.trust_remote_code)
    )
    if arguments.seed is not None:
        set_seed(arguments.seed)
    chat = Chat(model, sampling, arguments.chat_template_kwargs, arguments.system)
    if arguments.message is not None:
        chat.say(sys.stdin.read() if arguments.message == "-" else arguments.message)
    else:
        _converse(chat)
    return EXIT_DONE


class Chat:
    """One conversation: its messages so far, the model, and the settings for its answers."""

    def __init__(
        self,
        model: LoadedModel,
        sampling: Sampling,
        template_kwargs: dict[str, Any],
        system: str | None,
    ) -> None:
        self._model = model
        self._sampling = sampling
        self._template_kwargs = template_kwargs
        self._opening: Messages = [{"role": "system", "content": system}] if system else []
        self.reset()

    def reset(self) -> None:
        """Remove every message except the system message."""
        self._messages = list(self._opening)

    def say(self, text: str) -> None:
        """Add a user message and print the answer on stdout while it is generated.

        Ctrl-C stops the answer. Its text so far stays in the conversation.

        Raises:
            ModelError: If the conversation is too long. It does not keep the user message.
            KeyboardInterrupt: After Ctrl-C, when the answer has ended.
        """
        messages = [*self._messages, {"role": "user", "content": text}]
        stream = self._model.answer(messages, self._sampling, self._template_kwargs)
        pieces: list[str] = []
        with signals_held(meanwhile=stream.stop):
            try:
                for piece in stream:
                    print_result(piece, end="")
                    pieces.append(piece)
            finally:
                print(flush=True)
                self._messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]
        if stream.was_cut:
            print("(the answer was cut at the token limit; see --max-new-tokens)", file=sys.stderr)


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
    """Return the next line of stdin; None at its end or after `/exit`."""
    try:
        text = input("> " if is_terminal else "").strip()
    except EOFError:
        return None
    return None if text in ("/exit", "/quit") else text


def _parse_json_object(text: str) -> dict[str, Any]:
    """Return the JSON object that an argument gives.

    Raises: ArgumentTypeError if the text is not a JSON object.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value
