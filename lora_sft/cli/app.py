"""`lora-sft`: the commands, and what an error becomes at the end of the line.

Nothing heavy is imported at the top of any file of this room: `--help` and a recipe error
answer before torch would have been found on disk. Each command imports the pipeline inside.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import select
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout

from lora_sft.cli import (
    chat,
    evaluate,
    launch,
    merge,
    prepare,
    preview,
    quickstart,
    recipes,
    serve,
    show,
    train,
)
from lora_sft.cli.arguments import Parser, UsageError
from lora_sft.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_RECIPE,
    EXIT_UNEXPECTED,
    Fault,
    LoraSftError,
)
from lora_sft.log import is_main_process, outlive_readers
from lora_sft.processes.stop_signal import Stopped, StopRequest
from lora_sft.versions import __version__

COMMANDS = (
    quickstart,
    recipes,
    show,
    preview,
    prepare,
    train,
    launch,
    evaluate,
    merge,
    chat,
    serve,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with the contract's exit code."""
    outlive_readers()
    _settle_libraries()
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments), ends_process=True))


def _settle_libraries() -> None:
    """What the libraries read from the environment at import; a user's own setting wins."""
    # No telemetry: TRL pings the hub from its trainer unless told not to.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Bars are for a person at a terminal; in a log file each becomes a hundred lines.
    if not (sys.stderr.isatty() and is_main_process()):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # DeepSpeed logs to stdout, which is for results, as soon as a library finds it installed.
    logging.getLogger("DeepSpeed").addFilter(_log_to_stderr)
    # transformers 5.23 calls its own deprecated name; a user can do nothing about it.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")


def _log_to_stderr(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    if not text.startswith("Setting accelerator to CPU"):  # on every command without a GPU
        print(f"[{record.levelname}] {text}", file=sys.stderr)
    return False


def run(arguments: list[str], *, ends_process: bool = False) -> int:
    """Run one command and return its exit code; every error is printed as what, where, fix.

    `ends_process`: the caller leaves with that code, and signals are not given back to it.
    """
    parsed = argparse.Namespace(run=None)
    try:
        parsed = read_arguments(arguments)
        StopRequest.ends_process = ends_process and not _has_result(parsed)
        return _run_command(parsed)
    except LoraSftError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except UsageError as error:
        where = f"lora-sft {' '.join(arguments)}"
        print(Fault(str(error), where, _suggest(arguments)), file=sys.stderr)
        return EXIT_RECIPE
    except SystemExit as end:  # --help and --version
        return int(end.code or EXIT_DONE)
    except Stopped as stopped:  # a second signal, while the first one's end was written
        return stopped.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:  # the last door: what nobody foresaw is shown whole
        if _is_enough(error, parsed):
            return EXIT_DONE
        traceback.print_exc()
        what = f"unexpected {type(error).__name__}: {error}"
        print(Fault(what, "above", "please report it with the lines above"), file=sys.stderr)
        return EXIT_UNEXPECTED


def _run_command(parsed: argparse.Namespace) -> int:
    if not _has_result(parsed):  # whatever a library prints
        with redirect_stdout(sys.stderr):
            return int(parsed.run(parsed))
    code = int(parsed.run(parsed))
    if sys.stdout is not None:
        sys.stdout.flush()  # a reader who left is noticed here, not at exit
    return code


def _has_result(parsed: argparse.Namespace) -> bool:
    """Whether the command writes to stdout; what trains does not, and needs no reader there."""
    writes_files = parsed.run is launch.run and parsed.write is not None
    return parsed.run not in (train.run, launch.run) or writes_files


def _is_enough(error: Exception, parsed: argparse.Namespace) -> bool:
    """Whether the reader of a command's result, `head` say, left; it is given no more then.

    Any other broken pipe is an error: a tracker's, say.
    """
    if not isinstance(error, BrokenPipeError) or not _has_result(parsed):
        return False
    if not _is_broken(sys.stdout.fileno()):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _is_broken(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def build_parser() -> Parser:
    """The whole command line."""
    parser = Parser(
        prog="lora-sft",
        description="Train LoRA and QLoRA adapters from one recipe, and prove every step.",
        epilog="Start with: lora-sft quickstart",
    )
    parser.add_argument("--version", action="version", version=f"lora-sft {__version__}")
    # `deepspeed --module` puts the rank before the command.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    for module in COMMANDS:
        module.add_parser(commands)
    return parser


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; overrides may also stand after options.

    Raises: UsageError for anything that is not understood.
    """
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    if not hasattr(parsed, "run"):
        parser.print_help()
        raise SystemExit(EXIT_RECIPE if rest else EXIT_DONE)
    strangers = [argument for argument in rest if argument.startswith("-") or "=" not in argument]
    if strangers or (rest and not hasattr(parsed, "overrides")):
        raise UsageError(f"unknown argument: {' '.join(strangers or rest)}")
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    if parsed.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(parsed.local_rank))
    return parsed


def _suggest(arguments: Sequence[str]) -> str:
    names = [module.__name__.rsplit(".", 1)[-1] for module in COMMANDS]
    command = next((word for word in arguments if not word.startswith("-")), "")
    near = difflib.get_close_matches(command, names, n=1)
    if command in names:
        return f"see lora-sft {command} --help"
    return f"did you mean lora-sft {near[0]}?" if near else "see lora-sft --help"
