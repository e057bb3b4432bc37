"""`lora-sft serve`: an OpenAI-compatible endpoint for a run, an adapter or a merged model."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
from typing import TYPE_CHECKING

from lora_sft.cli.arguments import Commands, add_command, add_model_folder
from lora_sft.errors import EXIT_DONE, CapabilityError
from lora_sft.log import say

if TYPE_CHECKING:
    from lora_sft.serve.speaker import Target

API_KEY_VARIABLE = "LORA_SFT_API_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "serve",
        run,
        "Serve a run or a model to OpenAI clients.",
        "vLLM answers where it is installed, else transformers in this process.",
    )
    add_model_folder(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port (8000); 0 takes a free one")
    parser.add_argument("--name", help="name that clients ask for (default: the folder's)")
    parser.add_argument(
        "--api-key", metavar="KEY", help=f"ask clients for it (default: ${API_KEY_VARIABLE})"
    )
    parser.add_argument("--backend", choices=("auto", "vllm", "transformers"), default="auto")
    parser.add_argument("--dry-run", action="store_true", help="print vLLM's command line and end")


def run(arguments: argparse.Namespace) -> int:
    """Serve until stopped."""
    from lora_sft.serve.speaker import find_target

    target = find_target(arguments.folder)
    if arguments.name:
        target = dataclasses.replace(target, name=arguments.name)
    key = arguments.api_key or os.environ.get(API_KEY_VARIABLE)
    if arguments.host not in LOOPBACK and not key:
        say(f"warning: anybody who reaches {arguments.host} can use the model; set --api-key")
    if arguments.dry_run or _takes_vllm(arguments, target):
        return _serve_with_vllm(arguments, target, key)
    return _serve_here(arguments, target, key)


def _takes_vllm(arguments: argparse.Namespace, target: Target) -> bool:
    """Whether vLLM is to answer: asked for, or there and able to."""
    from lora_sft.serve.vllm_command import has_vllm, make_vllm_command

    if arguments.backend != "auto" or not has_vllm():
        return bool(arguments.backend == "vllm")
    try:
        make_vllm_command(target, arguments.host, arguments.port)
    except CapabilityError as error:
        say(f"{error.what}; transformers serves it instead")
        return False
    return True


def _serve_with_vllm(arguments: argparse.Namespace, target: Target, key: str | None) -> int:
    from lora_sft.serve.vllm_command import become_vllm, make_vllm_command

    command = make_vllm_command(target, arguments.host, arguments.port)
    if arguments.dry_run:
        print(shlex.join(command))
        return EXIT_DONE
    say(shlex.join(command))
    become_vllm(command, key)
    return EXIT_DONE


def _serve_here(arguments: argparse.Namespace, target: Target, key: str | None) -> int:
    try:
        from lora_sft.serve.endpoint import build_app, open_listener, run_endpoint
    except ImportError as error:
        raise CapabilityError(
            f"the endpoint needs a package that is not installed: {error.name}",
            "lora-sft serve",
            "pip install 'lora-sft[serve]'",
        ) from error
    from lora_sft.serve.speaker import load_speaker

    with open_listener(arguments.host, arguments.port) as listener:
        app = build_app(load_speaker(target), key)
        listener.listen()
        host, port = listener.getsockname()[:2]
        say(f"serving {target.name} on http://{f'[{host}]' if ':' in host else host}:{port}/v1")
        run_endpoint(app, listener)
    return EXIT_DONE
