"""The work that one render of a chat template may do.

A chat template is a program, and it comes with a model that somebody else made. It may loop without
end, or double a text until the memory is full. So every render has a budget. The budget counts
work, not seconds: a template that passes the budget on one machine passes it on every machine.

The compiled template subtracts its work from the budget (`template_code`), and the functions that
it calls do so too (`limited_functions`). If an operation may write much more than it reads, its
work is estimated and checked before the operation.
"""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from types import GeneratorType, MappingProxyType, MethodType
from typing import Any

from jinja2.runtime import markup_join, str_join
from jinja2.utils import Namespace

from lora_sft.errors import DataError

# One unit of work is one character, read or written. An operation of a template takes about as much
# time as this many characters, and an item of a list takes about as much memory.
OPERATION_WORK = 16
NAMESPACE_WORK = 4 * OPERATION_WORK
GENERATOR_WORK = 8 * OPERATION_WORK
FORMAT_WORK = 64 * OPERATION_WORK  # of making `str.format` safe
RENDER_WORK = 20_000_000
# A conversation enlarges the budget: by WORK_PER_INPUT per character (each value counts as
# OPERATION_WORK characters), and for each message or tool by REREADING_WORK per character.
# Some templates read all messages again for each message, or copy the text before each message.
# The numbers are at least 20 times what the heaviest known templates need (TRL's Gemma 4, LFM 2).
WORK_PER_INPUT = 1_500
REREADING_WORK = 25
# The text of a render has its own limit, because its tokens need several hundred times its memory.
# A conversation enlarges it, and each message or tool once more: it may be shown with each of them.
TEXT_CHARACTERS = 500_000
TEXT_PER_INPUT = 20
# JSON numbers have at most 14,300 bits: Python reads at most 4,300 digits.
LONGEST_NUMBER_BITS = 20_000

OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
}
SCALARS = frozenset({bool, float, type(None)})
TEXTS = (str, bytes)
VIEWS: tuple[Any, ...] = (type({}.keys()), type({}.values()), type({}.items()))
GROUPS: tuple[Any, ...] = (list, tuple, set, frozenset, *VIEWS)
SIZED: tuple[Any, ...] = (dict, range, *GROUPS)
NAMESPACE_VALUES = "_Namespace__attrs"
NUMBER_IN_TEXT = re.compile(r"\d+")
MOST_DIGITS = 12  # of a width that is still read; a longer one passes every budget
PRINTF_WIDTH = re.compile(r"%([#0\- +*.\d]*)")


RECIPE_PROMPT = "the prompt of the recipe"  # a place of an error


class TemplateOverBudget(DataError):
    """A chat template passed the budget of a render, or needed more memory than there is.

    It ends the command, because the template would cost as much for the next row. No row is
    dropped: the code that counts the refusals of a template does not catch this error.

    Attributes:
        reason: What the template does too much of.
        line: The line of the template, if it is known.
    """

    def __init__(self, reason: str, line: int | None = None, place: str = "") -> None:
        self.reason = reason
        self.line = line
        in_line = "" if line is None else f"line {line}"
        is_prompt = place == RECIPE_PROMPT
        super().__init__(
            f"the {'prompt' if is_prompt else 'chat template'} asks for too much work: {reason}",
            ", ".join(filter(None, (place, in_line))) or "the chat template",
            "correct the prompt"
            if is_prompt
            else "correct the template, or name another one in data.chat_template",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what a process of the preparation sends to the process that started it."""
        return type(self), (self.reason, self.line), self.__dict__

    def at(self, place: str) -> TemplateOverBudget:
        """Return the same error, which names the file or the model that has the template."""
        return TemplateOverBudget(self.reason, self.line, place)


class RenderBudget:
    """Counts the work of one render.

    Attributes:
        left: The work that is left. The compiled template also subtracts from it directly. If it is
            negative then, the template calls `spend`.
    """

    __slots__ = ("_inputs", "_is_enlarged", "left")

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        self.left = RENDER_WORK
        self._inputs = inputs
        self._is_enlarged = False

    def spend(self, work: int) -> None:
        """Subtract work.

        Raises: TemplateOverBudget if no work is left.
        """
        self.left -= work
        if self.left < 0:
            self._add_work_for_inputs()
            if self.left < 0:
                raise TemplateOverBudget("its loops are too long, or its texts are too large")

    def require(self, work: int) -> None:
        """Check that this much work is left. Subtract nothing.

        Raises: TemplateOverBudget if less work is left.
        """
        self.spend(work)
        self.left += work

    def _add_work_for_inputs(self) -> None:
        """Enlarge the budget, once, for the size of the conversation.

        Most renders never need this, so the conversation is measured only here.
        """
        if not self._is_enlarged:
            self._is_enlarged = True
            work = WORK_PER_INPUT + REREADING_WORK * self._count_entries()
            self.left += work * measure(self._inputs, sys.maxsize)

    def _count_entries(self) -> int:
        return sum(len(self._inputs.get(name) or ()) for name in ("messages", "tools"))

    def check_size(self, text: str) -> str:
        """Return the text of the render.

        Raises: TemplateOverBudget if the text is too long for its conversation.
        """
        if len(text) > TEXT_CHARACTERS:
            per_input = TEXT_PER_INPUT + self._count_entries()
            if len(text) > TEXT_CHARACTERS + per_input * measure(self._inputs, sys.maxsize):
                raise TemplateOverBudget(f"it writes {len(text):,} characters")
        return text

    def is_tool(self, value: Any) -> bool:
        """Return whether a value is one of the conversation's tools, which are never changed."""
        return any(value is tool for tool in self._inputs.get("tools") or ())

    def read(self, value: Any) -> int:
        """Spend the work of reading a value and all values inside it. Return this work."""
        work = len(value) if type(value) is str else measure(value, self.left)
        if work > self.left:
            self._add_work_for_inputs()
            work = measure(value, self.left)
        self.left -= work
        if self.left < 0:
            self.spend(0)
        return work

    def look_at(self, value: Any) -> int:
        """Spend the work of reading a value, but not the values inside it. Return this work."""
        kind = type(value)
        if kind is list or kind is tuple or kind is dict:
            work = OPERATION_WORK * len(value)
        elif isinstance(value, TEXTS):
            work = len(value)
        elif isinstance(value, SIZED):
            work = OPERATION_WORK * len(value)
        else:
            work = OPERATION_WORK
        self.left -= work
        if self.left < 0:
            self.spend(0)
        return work

    def follow(self, items: Iterable[Any], work: int, *, deep: bool) -> Iterator[Any]:
        """Yield the items of an iterator, and spend work for each of them.

        Args:
            items: The items.
            work: The work for each item.
            deep: Also spend the work of reading each item.
        """
        for item in items:
            self.spend(work)
            if deep:
                self.read(item)
            yield item

    # The compiled template calls the following methods.

    def wrote(self, value: Any) -> Any:
        """Return a value that an operation or a function made, after spending work for its size."""
        kind = type(value)
        if kind is str:
            self.left -= len(value)
            if self.left < 0:
                self.spend(0)
        elif kind is int:
            if value.bit_length() > LONGEST_NUMBER_BITS:
                raise TemplateOverBudget(f"it makes a number of over {LONGEST_NUMBER_BITS:,} bits")
        elif kind is GeneratorType:
            self.spend(GENERATOR_WORK)
            return self.follow(value, OPERATION_WORK, deep=False)
        elif kind not in SCALARS:
            self.look_at(value)
        return value

    def show(self, value: Any) -> str:
        """Return the text of a value."""
        kind = type(value)
        if kind is int:
            self.spend(value.bit_length())
        elif kind not in SCALARS:
            self.read(value)
        return str(value)

    def join(self, values: Iterable[Any]) -> str:
        """Return the texts of the values as one text (the operator `~`)."""
        return self.concat([value if type(value) is str else self.show(value) for value in values])

    def join_html(self, is_html: bool, values: tuple[Any, ...]) -> str:
        """Return the texts of the values as one text (`~`), in a template that may escape HTML."""
        self.read(values)
        return self.wrote(markup_join(values) if is_html else str_join(values))

    def concat(self, pieces: Iterable[str]) -> str:
        """Return the pieces as one text."""
        if type(pieces) is not list:
            pieces = list(pieces)
        self.left -= sum(map(len, pieces))
        if self.left < 0:
            self.spend(0)
        return "".join(pieces)

    def split(self, text: str, separator: str) -> list[str]:
        """Return `text.split(separator)`."""
        if len(text) > RENDER_WORK // OPERATION_WORK:
            self.require(OPERATION_WORK * text.count(separator))
        pieces = text.split(separator)
        self.left -= len(text) + OPERATION_WORK * len(pieces)
        if self.left < 0:
            self.spend(0)
        return pieces

    def compared(self, value: Any) -> Any:
        """Return a value that the template compares, or writes, after spending work to read it."""
        kind = type(value)
        if kind is str:
            self.spend(len(value))
        elif kind is not int and kind not in SCALARS:
            self.read(value)
        return value

    def searched(self, value: Any) -> Any:
        """Return a value that the template searches (the operator `in`)."""
        if type(value) is str:
            self.left -= len(value)
            if self.left < 0:
                self.spend(0)
        elif type(value) is not dict:
            self.read(value)
        return value

    def cut(self, value: Any) -> Any:
        """Return a value. The template then takes a slice of it."""
        self.look_at(value)
        return value

    def calculate(self, name: str, left: Any, right: Any) -> Any:
        """Return the result of an operator.

        Raises: TemplateOverBudget if the result would be too large. It is not computed then.
        """
        self.spend(self._estimate(name, left, right))
        return self.wrote(OPERATORS[name](left, right))

    def _estimate(self, name: str, left: Any, right: Any) -> int:
        if isinstance(left, int) and isinstance(right, int):
            return self._estimate_number(name, left, right)
        if name == "*":
            value, times = (right, left) if isinstance(left, int) else (left, right)
            return self.look_at(value) * max(times, 0) if isinstance(times, int) else 0
        if name == "%" and isinstance(left, TEXTS):
            return self.estimate_printf(left, right)
        if name == "-":  # of sets, which the keys of dictionaries are
            return self.read(left) + self.read(right)
        return 0

    def _estimate_number(self, name: str, left: int, right: int) -> int:
        bits = left.bit_length() + right.bit_length()
        if name == "**" and right > 0:
            bits = left.bit_length() * right
        if bits > LONGEST_NUMBER_BITS:
            raise TemplateOverBudget(f"it makes a number of over {LONGEST_NUMBER_BITS:,} bits")
        return bits

    def estimate_printf(self, pattern: str | bytes, values: Any) -> int:
        """Return the most that `pattern % values` may write. Spend the work of reading the values.

        A width is a number in the pattern (`%5d`), or one of the values (`%*d`).
        """
        text = pattern if isinstance(pattern, str) else pattern.decode("latin-1")
        each = values if isinstance(values, tuple) else (values,)
        work = len(text) + text.count("%") * self.read(values)
        for width in PRINTF_WIDTH.findall(text) if "(" not in text else [text]:
            work += add_numbers(width)
            if "*" in width:
                work += sum(abs(value) for value in each if isinstance(value, int))
        return work


def measure(value: Any, most: int) -> int:
    """Return the work of reading a value and all values inside it.

    A value that is reached twice counts twice. A list that holds the same text a thousand times is
    a thousand texts long when it is written.

    Args:
        value: The value.
        most: Stop if the work is larger. The result is then any number that is larger than this.
    """
    kind = type(value)
    if kind is str:
        return len(value)
    if kind is not dict and kind is not list:
        return _measure_other(value, most)
    work = OPERATION_WORK * len(value)
    if work > most:
        return work
    if kind is dict:
        for key in value:
            work += len(key) if type(key) is str else measure(key, most - work)
        value = value.values()
    for part in value:
        kind = type(part)
        if kind is str:
            work += len(part)
        elif kind not in SCALARS:
            work += measure(part, most - work)
            if work > most:
                break
    return work


def _measure_other(value: Any, most: int) -> int:
    if isinstance(value, TEXTS):
        return len(value)
    if isinstance(value, int):
        return value.bit_length()
    if isinstance(value, range):
        return OPERATION_WORK * len(value)
    if isinstance(value, (dict, MappingProxyType)):
        return measure(dict(value), most)
    if isinstance(value, GROUPS):
        return measure(list(value), most)
    if isinstance(value, Namespace):
        return NAMESPACE_WORK + measure(getattr(value, NAMESPACE_VALUES), most)
    if isinstance(value, MethodType):  # its text contains the text of its object
        return measure(value.__self__, most)
    return OPERATION_WORK


def add_numbers(text: str) -> int:
    """Return the sum of the numbers that are written in a text."""
    return sum(int(digits[:MOST_DIGITS]) for digits in NUMBER_IN_TEXT.findall(text))


CURRENT_BUDGET: ContextVar[RenderBudget] = ContextVar("budget")
# Returns the budget of the render that runs. It raises LookupError if none runs: jinja catches this
# when it compiles a constant expression, and leaves the expression to the render.
get_budget = CURRENT_BUDGET.get
