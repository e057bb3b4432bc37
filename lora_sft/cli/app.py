"""The `lora-sft` program: read the command line, run one command, print errors, set the exit code.

No file of this folder imports torch or another heavy library at its top, so `--help` and a recipe
error appear at once. Each command imports what it needs inside its `run` function.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import select
import sys
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
from lora_sft.hub_kernels import without_hub_kernels
from lora_sft.log import format_traceback, ignore_stderr_failures, is_main_process
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
    """Run one command and end the process with its exit code."""
    ignore_stderr_failures()
    _configure_libraries()
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments), ends_process=True))


def _configure_libraries() -> None:
    """Turn off telemetry, useless progress bars and useless messages of the libraries.

    The libraries read these environment variables at import. A value that the user set is kept.
    """
    # TRL's trainer sends a ping to the hub unless this variable is set.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # In a log file one progress bar becomes a hundred lines.
    if not (sys.stderr.isatty() and is_main_process()):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # Stdout is only for results. If DeepSpeed is installed, libraries import it, and it logs there.
    logging.getLogger("DeepSpeed").addFilter(_log_to_stderr)
    # transformers 5.23 itself uses this deprecated name, so the warning does not help a user.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")


def _log_to_stderr(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    # Without a GPU, DeepSpeed logs this line in every command.
    if not text.startswith("Setting accelerator to CPU"):
        print(f"[{record.levelname}] {text}", file=sys.stderr)
    return False


def run(arguments: list[str], *, ends_process: bool = False) -> int:
    """Run one command and return its exit code. Print an error as three lines: what, where, fix.

    Args:
        arguments: The command line without the program's name.
        ends_process: Whether the caller ends the process with the exit code. If so, the signal
            handlers from before the command stay replaced.
    """
    parsed = argparse.Namespace(run=None)
    try:
        parsed = read_arguments(arguments)
        StopRequest.ends_process = ends_process and not _prints_result(parsed)
        return _run_command(parsed)
    except LoraSftError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except UsageError as error:
        where = f"lora-sft {' '.join(arguments)}"
        print(Fault(str(error), where, _find_usage_fix(arguments)), file=sys.stderr)
        return EXIT_RECIPE
    except SystemExit as end:  # --help and --version
        return int(end.code or EXIT_DONE)
    except Stopped as stopped:  # a second signal came while the outcome of the first was written
        return stopped.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:  # a defect: print the whole traceback for a bug report
        if _ignore_closed_stdout(error, parsed):
            return EXIT_DONE
        print(format_traceback(), file=sys.stderr)
        what = f"unexpected {type(error).__name__}: {error}"
        fix = "please report this error with the traceback above"
        print(Fault(what, "see the traceback above", fix), file=sys.stderr)
        return EXIT_UNEXPECTED


@without_hub_kernels()
def _run_command(parsed: argparse.Namespace) -> int:
    if not _prints_result(parsed):  # libraries may print to stdout during training
        with redirect_stdout(sys.stderr):
            return int(parsed.run(parsed))
    code = int(parsed.run(parsed))
    if sys.stdout is not None:
        sys.stdout.flush()  # raise BrokenPipeError here and not at exit, if stdout was closed
    return code


def _prints_result(parsed: argparse.Namespace) -> bool:
    """Return whether the command prints a result on stdout. `train` and `launch` do not."""
    writes_files = parsed.run is launch.run and parsed.write is not None
    return parsed.run not in (train.run, launch.run) or writes_files


def _ignore_closed_stdout(error: Exception, parsed: argparse.Namespace) -> bool:
    """Return whether the error means that the reader of stdout, such as `head`, has ended.

    If so, redirect stdout to the null device. Any other broken pipe stays an error, for example a
    lost connection to an experiment tracker.
    """
    if not isinstance(error, BrokenPipeError) or not _prints_result(parsed):
        return False
    if not _has_no_reader(sys.stdout.fileno()):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _has_no_reader(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def build_parser() -> Parser:
    """Return the parser of the whole command line."""
    parser = Parser(
        prog="lora-sft",
        description="Fine-tune a causal language model with LoRA or QLoRA from one YAML recipe, "
        "and verify the result.",
        epilog="Start with: lora-sft quickstart",
    )
    parser.add_argument("--version", action="version", version=f"lora-sft {__version__}")
    # `deepspeed --module` calls `lora_sft --local_rank=N train RECIPE`.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    for module in COMMANDS:
        module.add_parser(commands)
    return parser


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line. Overrides (FIELD=VALUE) may also follow the options.

    Raises: UsageError if the command line has an unknown command or argument.
    """
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    if not hasattr(parsed, "run"):
        parser.print_help()
        raise SystemExit(EXIT_RECIPE if rest else EXIT_DONE)
    unknown = [argument for argument in rest if argument.startswith("-") or "=" not in argument]
    if unknown or (rest and not hasattr(parsed, "overrides")):
        raise UsageError(f"unknown argument: {' '.join(unknown or rest)}")
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    if parsed.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(parsed.local_rank))
    return parsed


def _find_usage_fix(arguments: Sequence[str]) -> str:
    names = [module.__name__.rsplit(".", 1)[-1] for module in COMMANDS]
    command = next((word for word in arguments if not word.startswith("-")), "")
    near = difflib.get_close_matches(command, names, n=1)
    if command in names:
        return f"see lora-sft {command} --help"
    return f"did you mean lora-sft {near[0]}?" if near else "see lora-sft --help"
