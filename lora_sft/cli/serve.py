"""`lora-sft serve`: serve a run, an adapter or a merged model over the OpenAI API."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
from typing import TYPE_CHECKING

from lora_sft.cli.arguments import Commands, add_command, add_model_folder, add_trust
from lora_sft.errors import EXIT_DONE, CapabilityError
from lora_sft.log import print_result, say

if TYPE_CHECKING:
    from lora_sft.serve.loaded_model import ModelFolder

API_KEY_VARIABLE = "LORA_SFT_API_KEY"
DEFAULT_HOST = "127.0.0.1"
LOOPBACK_HOSTS = (DEFAULT_HOST, "::1", "localhost")


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "serve",
        run,
        "Serve a run or a model over the OpenAI API.",
        "If vLLM is installed, it runs the server. Otherwise transformers answers in this process.",
    )
    add_model_folder(parser)
    add_trust(parser)
    parser.add_argument(
        "--host",
        help=f"the address to listen on (default: {DEFAULT_HOST}); without this option, only "
        "requests to localhost are answered",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=8000,
        help="the port to listen on (default: 8000); 0 takes any free port",
    )
    parser.add_argument(
        "--name", help="the model's name in the API (default: the name of the folder)"
    )
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"the key that every client must send (default: ${API_KEY_VARIABLE})",
    )
    parser.add_argument(
        "--backend",
        choices=("auto", "vllm", "transformers"),
        default="auto",
        help="auto (default): vLLM if it is installed and can serve the model, else transformers",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the vLLM command and start nothing"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve the model until a signal stops the server."""
    from lora_sft.serve.loaded_model import find_model_folder

    model = find_model_folder(arguments.folder, trust_remote_code=arguments.trust_remote_code)
    if arguments.name:
        model = dataclasses.replace(model, name=arguments.name)
    key = arguments.api_key or os.environ.get(API_KEY_VARIABLE)
    host = arguments.host or DEFAULT_HOST
    if host not in LOOPBACK_HOSTS and not key:
        say(f"warning: every computer that can reach {host} can use the model; set --api-key")
    if arguments.dry_run or _should_use_vllm(arguments, model):
        return _serve_with_vllm(arguments, model, key)
    return _serve_with_transformers(arguments, model, key)


def _should_use_vllm(arguments: argparse.Namespace, model: ModelFolder) -> bool:
    """Return whether vLLM serves the model.

    With `--backend auto`, it does if it is installed and can serve this model.
    """
    from lora_sft.serve.vllm_command import is_vllm_installed, make_vllm_command

    if arguments.backend != "auto" or not is_vllm_installed():
        return bool(arguments.backend == "vllm")
    try:
        make_vllm_command(model, arguments.host or DEFAULT_HOST, arguments.port)
    except CapabilityError as error:
        say(f"{error.what}; transformers serves the model instead")
        return False
    return True


def _serve_with_vllm(arguments: argparse.Namespace, model: ModelFolder, key: str | None) -> int:
    from lora_sft.serve.vllm_command import make_vllm_command, replace_process_with_vllm

    command = make_vllm_command(model, arguments.host or DEFAULT_HOST, arguments.port)
    if arguments.dry_run:
        print_result(shlex.join(command))
        return EXIT_DONE
    say(shlex.join(command))
    replace_process_with_vllm(command, key)
    return EXIT_DONE


def _serve_with_transformers(
    arguments: argparse.Namespace, model: ModelFolder, key: str | None
) -> int:
    try:
        from lora_sft.serve.endpoint import build_app
        from lora_sft.serve.listening import open_listener, run_endpoint
    except ImportError as error:
        raise CapabilityError(
            f"a package that the server needs is not installed: {error.name}",
            "lora-sft serve",
            "pip install 'lora-sft[serve]'",
        ) from error
    from lora_sft.serve.loaded_model import load_model

    with open_listener(arguments.host or DEFAULT_HOST, arguments.port) as listener:
        app = build_app(load_model(model), key, loopback_names_only=arguments.host is None)
        listener.listen()
        host, port = listener.getsockname()[:2]
        say(f"serving {model.name} on http://{f'[{host}]' if ':' in host else host}:{port}/v1")
        run_endpoint(app, listener)
    return EXIT_DONE
