"""The errors that a user may see. Each says what is wrong, where it is, and how to fix it.

There is one class per family, because the family decides the exit code. Each class also derives
from the built-in exception that a Python caller expects, so `except ValueError` works.

Names, values and messages of libraries come into an error as they are. `Fault` makes them fit to be
shown, so every error can be printed and stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from lora_sft.shown_text import hide_secrets, make_one_line

EXIT_DONE = 0
EXIT_UNEXPECTED = 1
EXIT_RECIPE = 2
EXIT_DATA = 3
EXIT_MODEL = 4
EXIT_CAPABILITY = 5
EXIT_TRAINING = 6
EXIT_EXPORT = 7
EXIT_RESUME_ME = 75
EXIT_INTERRUPTED = 130

LONGEST_PART_CHARACTERS = 2_000


@dataclass(frozen=True)
class Fault:
    """One mistake: what is wrong, where it is (file:line and field), and how to fix it.

    Each part is one printable line without passwords, whatever text it was made from.
    """

    what: str
    where: str = ""
    fix: str = ""

    def __post_init__(self) -> None:
        for part in fields(self):
            line = make_one_line(hide_secrets(getattr(self, part.name)), LONGEST_PART_CHARACTERS)
            object.__setattr__(self, part.name, line)

    def __str__(self) -> str:
        return f"error: {self.what}\nwhere: {self.where}\nfix:   {self.fix}"


class LoraSftError(Exception):
    """The base class of all expected errors.

    An error has one or more faults, usually one. The recipe reader collects all faults of a file
    in one error, so that a user can fix them all at once.

    Attributes:
        state_saved: Whether the work of this start is on disk although it ends with this error.
    """

    exit_code = EXIT_UNEXPECTED
    state_saved = False

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        self.faults: tuple[Fault, ...] = (Fault(what, where, fix),)
        super().__init__(self.what)

    @classmethod
    def from_faults(cls, faults: Sequence[Fault]) -> LoraSftError:
        """Return an error that shows all of `faults`, which must not be empty."""
        first = faults[0]
        error = cls(first.what, first.where, first.fix)
        error.faults = tuple(faults)
        return error

    @property
    def what(self) -> str:
        return self.faults[0].what

    @property
    def where(self) -> str:
        return self.faults[0].where

    @property
    def fix(self) -> str:
        return self.faults[0].fix

    def __str__(self) -> str:
        return "\n\n".join(str(fault) for fault in self.faults)


class RecipeError(LoraSftError, ValueError):
    """The recipe has a wrong key or value. `where` names the file, the line and the field."""

    exit_code = EXIT_RECIPE


class ResumeMismatch(RecipeError):
    """The checkpoint belongs to a different run: another recipe, other data or processes."""


class DataError(LoraSftError, ValueError):
    """The data cannot be read, or nothing can be learned. `where` names source, row and field."""

    exit_code = EXIT_DATA


class ModelError(LoraSftError, ValueError):
    """The base model, the tokenizer or the adapter is missing, or they do not fit together."""

    exit_code = EXIT_MODEL


class CapabilityError(LoraSftError, RuntimeError):
    """This machine or environment lacks something. The error names what is needed and found."""

    exit_code = EXIT_CAPABILITY


class TrainingError(LoraSftError, RuntimeError):
    """Training cannot continue. The error names the optimizer step and the reason."""

    exit_code = EXIT_TRAINING


class NonFiniteLoss(TrainingError):
    """The loss or the gradient is NaN or infinite."""


class ExportError(LoraSftError, RuntimeError):
    """The merged model cannot be written."""

    exit_code = EXIT_EXPORT


class VerificationError(ExportError):
    """The merged model differs from base + adapter by more than the tolerance."""
