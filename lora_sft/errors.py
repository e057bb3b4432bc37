"""Every error a user can meet, each with what is wrong, where it is, and how to mend it.

One class per family, because the family decides the exit code (`EXIT_CODES` in the
command-line contract). Each class also derives from the built-in that a Python caller would
expect, so that `except ValueError` keeps working around the library.

Nothing here knows any other part of the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: what, where (file:line and field), and the fix."""

    what: str
    where: str = ""
    fix: str = ""

    def __str__(self) -> str:
        return f"error: {self.what}\nwhere: {self.where}\nfix:   {self.fix}"


class LoraSftError(Exception):
    """The root of all expected errors.

    It carries one or more faults. Most errors have one; reading a recipe collects all that can
    be known in one go, so that a person mends the file once.
    """

    exit_code = EXIT_UNEXPECTED

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        self.faults: tuple[Fault, ...] = (Fault(what, where, fix),)
        super().__init__(what)

    @classmethod
    def from_faults(cls, faults: Sequence[Fault]) -> LoraSftError:
        """An error that shows every one of `faults` (at least one)."""
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
    """The recipe says something that cannot be: file:line, field, value, and the nearest name."""

    exit_code = EXIT_RECIPE


class ResumeMismatch(RecipeError):
    """The checkpoint belongs to another run than this recipe, its data and processes make."""


class DataError(LoraSftError, ValueError):
    """The data cannot be read or leaves nothing to learn: source, row number, field."""

    exit_code = EXIT_DATA


class ModelError(LoraSftError, ValueError):
    """The base model, tokenizer or adapter does not fit: model, revision, module."""

    exit_code = EXIT_MODEL


class CapabilityError(LoraSftError, RuntimeError):
    """This machine or environment lacks something: what is needed and what was found."""

    exit_code = EXIT_CAPABILITY


class TrainingError(LoraSftError, RuntimeError):
    """Training cannot go on: the optimizer step and what happened there."""

    exit_code = EXIT_TRAINING


class NonFiniteLoss(TrainingError):
    """The loss or its gradient is NaN or infinite."""


class ExportError(LoraSftError, RuntimeError):
    """The merged model cannot be written."""

    exit_code = EXIT_EXPORT


class VerificationError(ExportError):
    """The merged model does not answer like base + adapter: difference and tolerance."""
