"""The filters, tests and functions that chat templates call, within the budget of the render.

A call first spends the work of reading its arguments, and afterwards the size of its result. This
is enough for most functions, because they write about as much as they read. The tables below name
the other functions: their work grows with a number among the arguments, with the product of two
arguments, or with the square of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import wraps
from itertools import chain
from typing import Any

from jinja2.runtime import LoopContext
from jinja2.sandbox import SandboxedEscapeFormatter, SandboxedFormatter, safe_range
from jinja2.utils import generate_lorem_ipsum

from lora_sft.data.templates.render_budget import (
    GROUPS,
    OPERATION_WORK,
    SIZED,
    TEXTS,
    RenderBudget,
    TemplateOverBudget,
    add_numbers,
    get_budget,
)

Function = Callable[..., Any]

# These functions look only at the argument itself, or at one of its items.
FREE_FILTERS = frozenset({"count", "d", "default", "first", "items", "last", "length", "random"})
FREE_TESTS = frozenset(
    {"boolean", "callable", "defined", "escaped", "false", "float", "integer"}
    | {"iterable", "mapping", "none", "number", "sameas", "sequence", "string", "true"}
    | {"undefined"}
)
# These functions look at each item of a list, but not at the values inside the items.
SHALLOW = frozenset(
    {"batch", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "slice"}
)
# A number among the arguments says how many characters, digits or items the function makes.
PADDED = frozenset({"batch", "center", "ljust", "rjust", "round", "to_bytes", "zfill"})
# The function writes one argument for each character or item of another argument.
MULTIPLIED = frozenset({"expandtabs", "indent", "join", "replace", "translate", "wordwrap"})
# The function cuts a text into pieces. There may be as many pieces as characters.
CUT = frozenset({"list", "rsplit", "split", "splitlines", "title", "wordcount"})
# The work grows with the square of the size, divided by this number.
SQUARED = {"decode": 1, "encode": 1, "pprint": 256, "striptags": 256, "urlize": 4, "wordwrap": 4}
# These make a dictionary or a set. Numbers may be chosen so that each is compared with all others.
# Python's hashes of texts are random, so texts cannot be chosen like that.
HASHED = frozenset({"dict", "fromkeys", "unique"})
SUM_OF_LISTS = 256  # the same for `sum` if it adds lists
# The function computes `first % others`, which formats a text.
FORMATTED = frozenset({"divisibleby", "even", "format", "odd"})
# What these filters do with a text.
TEXT_FILTERS: Mapping[str, Function] = {
    "capitalize": str.capitalize,
    "lower": str.lower,
    "string": str,
    "trim": str.strip,
    "upper": str.upper,
}
SCALARS = frozenset({str, int, float, bool, type(None)})
SPECIAL = SHALLOW | FORMATTED | CUT | HASHED | SQUARED.keys()
PLAIN = SCALARS | {dict, list}
COUNTED: tuple[Any, ...] = (LoopContext, *SIZED)
STRFTIME_WORK = 256  # C's strftime gets a buffer of this many characters per character of a format
SEARCHED = 64  # a search in a text compares this many characters per unit of work
WORD_WORK = 10 * OPERATION_WORK  # of a word that `lipsum` chooses


def limit_filters(filters: Mapping[str, Function]) -> dict[str, Any]:
    """Return the filters of an environment, within the budget of the render."""
    return {
        name: function if name in FREE_FILTERS else _limit(name, function)
        for name, function in filters.items()
    }


def limit_tests(tests: Mapping[str, Function]) -> dict[str, Any]:
    """Return the tests of an environment, within the budget of the render."""
    return {
        name: function if name in FREE_TESTS else _limit(name, function)
        for name, function in tests.items()
    }


def _limit_json(function: Function) -> Function:
    """Return the filter `tojson`, within the budget of the render.

    The text of a tool is about as long as the tool, so no work is spent to measure the tool before.
    """

    @wraps(function)
    def limited(value: Any, /, *args: Any, **options: Any) -> Any:
        budget = get_budget()
        if args or options:
            _require_for_layout(budget, value, (*args, *options.values()))
        elif not budget.is_tool(value):
            budget.read(value)
        return budget.wrote(function(value, *args, **options))

    return limited


def _require_for_layout(budget: RenderBudget, value: Any, options: Sequence[Any]) -> None:
    """Check that work is left for a JSON text with white space, which each line repeats."""
    lines = budget.read(value) // OPERATION_WORK
    width = sum(abs(each) if isinstance(each, int) else budget.read(each) for each in options)
    if lines * lines * width > budget.left:  # values are never nested deeper than there are lines
        budget.require(lines * measure_depth(value) * width)


def _limit(name: str, function: Function) -> Function:
    """Return a filter or a test that spends the budget of the render.

    Jinja passes the context or the environment to some of them before the arguments of the
    template. An attribute of the function asks for it, and `wraps` copies this attribute.
    """
    if name == "tojson":
        return _limit_json(function)
    if hasattr(function, "jinja_pass_arg"):

        @wraps(function)
        def limited(own: Any, /, *args: Any, **kwargs: Any) -> Any:
            budget = get_budget()
            given, kwargs = spend_for_call(budget, name, args, kwargs)
            return budget.wrote(function(own, *given, **kwargs))

    else:
        is_special, of_text = name in SPECIAL, TEXT_FILTERS.get(name)

        @wraps(function)
        def limited(value: Any, /, *args: Any, **kwargs: Any) -> Any:
            budget = get_budget()
            kind = type(value)
            if args or kwargs or is_special or kind not in PLAIN:
                given, kwargs = spend_for_call(budget, name, (value, *args), kwargs)
                return budget.wrote(function(*given, **kwargs))
            budget.read(value)
            if kind is str and of_text is not None:
                return of_text(value)
            return budget.wrote(function(value))

    return limited


def spend_for_call(
    budget: RenderBudget, name: str, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Spend the work of a call before it runs.

    Args:
        budget: The budget of the render.
        name: The name of the function, by which the tables know it.
        args: Its arguments. The object of a method is the first.
        kwargs: Its arguments by name.

    Returns: The arguments. An iterator among them is replaced by one that spends work per item.
    """
    values = [*args, *kwargs.values()]
    if not values:
        budget.spend(OPERATION_WORK)
        return [], kwargs
    if name in HASHED and (is_iterator(values[0]) or isinstance(values[0], LoopContext)):
        values[0] = list(budget.follow(values[0], OPERATION_WORK, deep=False))
    first, *others = [None if is_iterator(value) else value for value in values]
    size = budget.look_at(first) if name in SHALLOW else budget.read(first)
    others_size = sum(map(budget.read, others))
    if isinstance(first, TEXTS):
        budget.spend(OPERATION_WORK + size * others_size // SEARCHED)
    elif isinstance(first, COUNTED):
        budget.spend(OPERATION_WORK + len(first) * (OPERATION_WORK + others_size))
    _spend_by_name(budget, name, first, size, others, others_size)
    deep, work = name not in SHALLOW, OPERATION_WORK + others_size
    work += size if isinstance(first, TEXTS) else 0
    values = [
        budget.follow(value, work, deep=deep) if is_iterator(value) else value for value in values
    ]
    return values[: len(args)], dict(zip(kwargs, values[len(args) :], strict=True))


def is_iterator(value: Any) -> bool:
    """Return whether a value is an iterator, other than the variable `loop`."""
    kind = type(value)
    if kind in PLAIN or kind is LoopContext:
        return False
    return issubclass(kind, Iterator)


def _spend_by_name(
    budget: RenderBudget, name: str, first: Any, size: int, others: list[Any], others_size: int
) -> None:
    """Spend the work that only the functions of the tables do, or check that it is left."""
    number = sum(abs(other) for other in others if isinstance(other, int))
    if name in PADDED:
        budget.spend(OPERATION_WORK * number)
    elif name in MULTIPLIED:
        budget.require((size + 1) * (1 + number + others_size))
    elif name in CUT:
        budget.require(OPERATION_WORK * size)
    elif name in FORMATTED and isinstance(first, TEXTS):
        budget.require(budget.estimate_printf(first, tuple(others or [0])))
    elif name in ("strftime", "strftime_now"):
        budget.require(STRFTIME_WORK * (size + others_size))
    elif name == "sum" and any(isinstance(other, GROUPS) for other in others):
        budget.spend(size * size // SUM_OF_LISTS)
    if name in HASHED and isinstance(first, SIZED):
        budget.spend(OPERATION_WORK * sum(type(item) is not str for item in first) ** 2)
    if name in SQUARED and (others or name not in ("decode", "encode")):
        budget.spend(size * size // SQUARED[name])


def measure_depth(value: Any) -> int:
    """Return how many lists and dictionaries are nested in each other."""
    if type(value) in SCALARS or not isinstance(value, (dict, *GROUPS)):
        return 0
    parts: Any = chain(value, value.values()) if isinstance(value, dict) else value
    return 1 + max(map(measure_depth, parts), default=0)


def make_range(*args: int) -> range:
    """Return a range of at most 100,000 numbers, as the sandbox allows.

    Raises: TemplateOverBudget if it would be longer.
    """
    try:
        return safe_range(*args)
    except OverflowError as error:
        raise TemplateOverBudget("it asks for a range of more than 100,000 numbers") from error


def write_now(format: str) -> str:
    """Return the current time in a format of `strftime`, as transformers' `strftime_now` does."""
    budget = get_budget()
    budget.require(STRFTIME_WORK * budget.read(format))
    return datetime.now().strftime(format)


def write_lipsum(*args: Any, **kwargs: Any) -> str:
    """Return words without meaning, as jinja's function does."""
    numbers = [value for value in chain(args, kwargs.values()) if isinstance(value, int)]
    get_budget().spend(WORD_WORK * 100 * math.prod(1 + abs(number) for number in numbers))
    return generate_lorem_ipsum(*args, **kwargs)


class LimitedFormatter(SandboxedFormatter):
    """Formats the fields of `str.format` within the budget of the render."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        """Return the text of a value with a width, such as `>20`."""
        budget = get_budget()
        budget.read(value)
        budget.require(add_numbers(format_spec))
        return budget.wrote(super().format_field(value, format_spec))

    def convert_field(self, value: Any, conversion: Any) -> Any:
        """Return `str(value)` or `repr(value)`, if the field asks for it."""
        get_budget().read(value)
        return super().convert_field(value, conversion)


class LimitedEscapeFormatter(LimitedFormatter, SandboxedEscapeFormatter):
    """The same for texts of HTML."""
