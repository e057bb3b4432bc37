"""Compile chat templates as transformers does, with faster reads of plain data and with a budget.

A template cannot render without end or fill the memory: each render has a budget (`render_budget`).
A template sees the same values as in the sandbox of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, update_wrapper
from traceback import walk_tb
from types import BuiltinMethodType, MethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from markupsafe import Markup
from transformers.utils.chat_template_utils import _compile_jinja_template

from lora_sft.data.templates.limited_functions import (
    LimitedEscapeFormatter,
    LimitedFormatter,
    limit_filters,
    limit_tests,
    make_range,
    spend_for_call,
    write_lipsum,
    write_now,
)
from lora_sft.data.templates.plain_data import PlainDataEnvironment
from lora_sft.data.templates.render_budget import (
    CURRENT_BUDGET,
    FORMAT_WORK,
    OPERATION_WORK,
    RenderBudget,
    TemplateOverBudget,
    get_budget,
)
from lora_sft.data.templates.template_code import CONDITION, LimitedCodeGenerator

DICT_READS = frozenset({"get", "items", "keys", "values"})
# Python raises these for work that it cannot do.
PYTHON_LIMITS = (MemoryError, OverflowError, RecursionError)
REASONS = dict(
    zip(
        PYTHON_LIMITS,
        (
            "it needs more memory than there is",
            "it computes with numbers that are too large",
            "its blocks, its calls or its values are nested too deeply",
        ),
        strict=True,
    )
)
# A real template has at most 20,000 characters. Compiling this many takes up to 2 seconds.
LONGEST_TEMPLATE_CHARACTERS = 100_000


class LimitedTemplate(jinja2.Template):
    """A template that renders within a budget, and in no other way."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        """Return the text.

        Raises: TemplateOverBudget if the render passes its budget.
        """
        variables = dict(*args, **kwargs)
        budget = RenderBudget(variables)
        token = CURRENT_BUDGET.set(budget)
        names = {**self.globals, **variables}
        context = Context(self.environment, names, self.name, self.blocks)
        try:
            return budget.check_size(budget.concat(self.root_render_func(context)))
        except (TemplateOverBudget, *PYTHON_LIMITS) as error:
            raise TemplateOverBudget(find_reason(error), self._find_line(error)) from None
        finally:
            CURRENT_BUDGET.reset(token)

    def _find_line(self, error: BaseException) -> int | None:
        """Return the line of the template at which an error was raised."""
        line = None
        for frame, code_line in walk_tb(error.__traceback__):
            if frame.f_globals.get("__jinja_template__") is self:
                line = self.get_corresponding_lineno(code_line)
        return line


def find_reason(error: BaseException) -> str:
    """Return what a template does too much of, for an error that its work raised."""
    if isinstance(error, TemplateOverBudget):
        return error.reason
    return next(reason for kind, reason in REASONS.items() if isinstance(error, kind))


class LimitedEnvironment(PlainDataEnvironment):
    """The environment of all chat templates. It spends the budget of the render that runs."""

    code_generator_class = LimitedCodeGenerator
    template_class = LimitedTemplate
    # An operator that is listed here is not computed when the template is compiled.
    intercepted_binops = frozenset({"*", "/", "//", "%", "**"})
    get_budget = staticmethod(get_budget)

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Return the pieces as one text."""
        return get_budget().concat(pieces)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return `obj[argument]`, as the sandbox does."""
        if type(argument) is str or type(argument) is int:
            try:
                return obj[argument]
            except (TypeError, LookupError):
                pass
        else:  # the hash or the text of the argument may be large work
            get_budget().read(argument)
        return super().getitem(obj, argument)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function for a template.

        A method of a string, a read of a dictionary and `namespace` do not need the context, and
        have no flags that the sandbox would check. The body of a macro or of a recursive loop
        spends its own work.
        """
        budget, kind = get_budget(), type(obj)
        if kind is Macro or kind is LoopContext:
            budget.spend(OPERATION_WORK * (1 + len(args) + len(kwargs)))
            return super().call(context, obj, *args, **kwargs)
        loop_variables = kwargs.pop("_loop_vars", None)
        block_variables = kwargs.pop("_block_vars", None)
        namespace: Any = self.globals["namespace"]
        if obj is namespace:
            budget.spend(OPERATION_WORK * (1 + len(kwargs)) + sum(map(budget.look_at, args)))
            return obj(*args, **kwargs)
        if kind is not BuiltinMethodType and kind is not MethodType:
            name = "dict" if obj is self.globals["dict"] else ""
            given, named = spend_for_call(budget, name, args, kwargs)
        else:
            owner = obj.__self__
            if type(owner) is dict and obj.__name__ in DICT_READS:
                if args and type(args[0]) is not str:
                    budget.read(args)
                return obj(*args, **kwargs)
            # A constructor (`dict.fromkeys`) does not read its owner.
            own = () if isinstance(owner, (type, type(self.globals["dict"]))) else (owner,)
            read, named = spend_for_call(budget, obj.__name__, (*own, *args), kwargs)
            given = read[len(own) :]
            if type(owner) is str:
                return budget.wrote(obj(*given, **named))
        scopes = {"_loop_vars": loop_variables, "_block_vars": block_variables}
        return budget.wrote(super().call(context, obj, *given, **named, **scopes))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return `str.format` or `str.format_map` for a template; None for any other value."""
        of_sandbox = super().wrap_str_format(value)
        if of_sandbox is None:
            return None
        budget = CURRENT_BUDGET.get(None)  # None while a constant expression is compiled
        if budget is not None:
            budget.spend(FORMAT_WORK)
        text = value.__self__
        if isinstance(text, Markup):
            formatter: LimitedFormatter = LimitedEscapeFormatter(self, escape=text.escape)
        else:
            formatter = LimitedFormatter(self)

        def format_text(*args: Any, **kwargs: Any) -> str:
            if value.__name__ != "format_map":
                return type(text)(formatter.vformat(text, args, kwargs))
            if kwargs or len(args) != 1:
                return of_sandbox(*args, **kwargs)  # raises the error
            return type(text)(formatter.vformat(text, (), *args))

        return update_wrapper(format_text, value)


class UnmarkedGeneration(Extension):
    """Renders `{% generation %}` as the text inside it, in its own scope.

    Transformers calls a function there, to record where the block begins and ends. The label rule
    does not need these positions, and the call takes longer than the text inside the block.
    """

    tags = {"generation"}  # noqa: RUF012 (as jinja declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the statements inside the block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


@lru_cache
def compile_template(chat_template: str) -> jinja2.Template:
    """Return the template, compiled in a copy of transformers' own environment.

    Raises:
        jinja2.TemplateError: If the text is not a valid template.
        TemplateOverBudget: If the text is too long, or nested too deeply.
    """
    if len(chat_template) > LONGEST_TEMPLATE_CHARACTERS:
        raise TemplateOverBudget(f"it has over {LONGEST_TEMPLATE_CHARACTERS:,} characters")
    try:
        template = _make_environment().from_string(chat_template)
    except PYTHON_LIMITS as error:
        raise TemplateOverBudget(find_reason(error)) from None
    # Each render copies the globals, and a ChainMap is slow to copy.
    template.globals = dict(template.globals)
    return template


def _make_environment() -> LimitedEnvironment:
    # Transformers computes constant expressions when it compiles, so it gets no real template.
    reference = _compile_jinja_template("").environment
    environment = LimitedEnvironment(
        trim_blocks=reference.trim_blocks,
        lstrip_blocks=reference.lstrip_blocks,
        extensions=[
            UnmarkedGeneration if UnmarkedGeneration.tags & extension.tags else type(extension)
            for extension in reference.extensions.values()
        ],
    )
    environment.filters = dict(limit_filters(reference.filters))
    environment.filters[CONDITION] = spend_condition
    environment.tests = limit_tests(reference.tests)
    environment.globals.update(reference.globals)
    environment.globals.update(range=make_range, lipsum=write_lipsum, strftime_now=write_now)
    return environment


def spend_condition(value: Any, work: int) -> Any:
    """Spend the work of the condition of a loop, and return the condition's value."""
    get_budget().spend(work)
    return value
