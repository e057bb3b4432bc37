"""Compile a chat template as transformers does, with shorter ways to what templates mostly read.

Every prefix of every conversation is rendered, so rendering costs as much as tokenising. Most of
that is the sandbox, which asks of each value whether it is a function, a frame, a coroutine ...
before a template may have it. Templates are given plain data (transformers 5.23
`_plain_template_data`), and of plain data the answer is known beforehand: the item of a dictionary,
the number of a loop, a method of a text. These few come directly; all else goes the sandbox's way,
so that a template sees exactly what it would see there.
"""

from __future__ import annotations

from functools import lru_cache
from types import BuiltinMethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from transformers.utils.chat_template_utils import _compile_jinja_template

PLAIN_KINDS = frozenset({str, int, float, bool})
DICT_ATTRIBUTES = frozenset(dir(dict))
LOOP_NUMBERS = frozenset({"index", "index0", "revindex", "revindex0", "first", "last", "length"})
# The sandbox wraps the two that format, as a format text can reach into objects.
TEXT_METHODS = frozenset(
    name for name in dir(str) if not name.startswith("_") and name not in ("format", "format_map")
)


class PlainDataEnvironment(ImmutableSandboxedEnvironment):
    """The immutable sandbox, quicker on dictionaries, namespaces, loops and texts."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute`, as the sandbox gives it.

        A dictionary's own attributes (`items`, `get`) come before its keys, so a name that is
        none of them can only be a key.
        """
        kind = type(obj)
        if kind is dict and attribute not in DICT_ATTRIBUTES:
            try:
                return obj[attribute]
            except KeyError:
                return self.undefined(obj=obj, name=attribute)
        if kind is str and attribute in TEXT_METHODS:
            return getattr(obj, attribute)
        if kind is LoopContext and attribute in LOOP_NUMBERS:
            return getattr(obj, attribute)
        if issubclass(kind, Namespace) and not attribute.startswith("_"):
            value = getattr(obj, attribute, None)
            if type(value) in PLAIN_KINDS:
                return value
        return super().getattr(obj, attribute)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls; a text's method takes no context and has no flags to ask."""
        if type(obj) is BuiltinMethodType and type(obj.__self__) is str:
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return obj(*args, **kwargs)
        return super().call(context, obj, *args, **kwargs)


class UnmarkedGeneration(Extension):
    """`{% generation %}` as the text inside it, in a scope of its own.

    Transformers calls a function there to note where it begins and ends; the label rule needs no
    such marks, and the call costs more than what it encloses.
    """

    tags = {"generation"}  # noqa: RUF012 (as jinja declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        """The block's own statements."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


@lru_cache
def compile_template(chat_template: str) -> jinja2.Template:
    """The template, compiled in a copy of transformers' own environment.

    Raises: jinja2.TemplateError where it is no template.
    """
    reference = _compile_jinja_template(chat_template).environment
    environment = PlainDataEnvironment(
        trim_blocks=reference.trim_blocks,
        lstrip_blocks=reference.lstrip_blocks,
        extensions=[
            UnmarkedGeneration if UnmarkedGeneration.tags & extension.tags else type(extension)
            for extension in reference.extensions.values()
        ],
    )
    environment.filters.update(reference.filters)
    environment.globals.update(reference.globals)
    template = environment.from_string(chat_template)
    template.globals = dict(template.globals)  # a ChainMap, which is slow to copy for each render
    return template
