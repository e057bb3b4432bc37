"""Compile a chat template as transformers does, with shorter ways to what templates mostly read.

Every prefix of every conversation is rendered, so rendering costs as much as tokenising. Most of
that is the sandbox, which asks of each value whether it is a function, a frame, a coroutine ...
before a template may have it. Templates are given plain data (transformers 5.23
`_plain_template_data`), and of plain data the answer is known beforehand: the item of a dictionary,
the number of a loop, a method of a text. These few come directly, the commonest without a call; all
else goes the sandbox's way, so that a template sees exactly what it would see there.
"""

from __future__ import annotations

from functools import lru_cache
from types import BuiltinMethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
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


class PlainDataCodeGenerator(CodeGenerator):
    """Writes the two commonest expressions of chat templates so that they need no call: the item
    of a dictionary (`message.role`), and a text's method with given arguments
    (`content.strip('\\n')`). Whatever else the value is, the environment is asked as before."""

    def visit_Getattr(  # noqa: N802 (jinja's name)
        self, node: nodes.Getattr, frame: Frame
    ) -> None:
        """`value['role'] if value is a dictionary that has it`, else `environment.getattr`."""
        if node.attr in DICT_ATTRIBUTES:
            super().visit_Getattr(node, frame)
            return
        value, name = self.temporary_identifier(), repr(node.attr)
        self.write(f"({value}[{name}] if type({value} := ")
        self.visit(node.node, frame)
        self.write(f") is dict and {name} in {value} else environment.getattr({value}, {name}))")

    def visit_Call(  # noqa: N802 (jinja's name)
        self, node: nodes.Call, frame: Frame, forward_caller: bool = False
    ) -> None:
        """`value.strip(...)` if value is a text, else `environment.call`."""
        method = node.node
        if forward_caller or not isinstance(method, nodes.Getattr) or not _is_plain(node, method):
            super().visit_Call(node, frame, forward_caller=forward_caller)
            return
        text, arguments = self.temporary_identifier(), ", ".join(map(_write_constant, node.args))
        self.write(f"({text}.{method.attr}({arguments}) if type({text} := ")
        self.visit(method.node, frame)
        self.write(f") is str else environment.call(context, environment.getattr({text}, ")
        self.write(repr(method.attr) + ")")
        scopes = {"_loop_vars": frame.loop_frame, "_block_vars": frame.block_frame}
        self.signature(node, frame, {name: name for name, is_there in scopes.items() if is_there})
        self.write("))")


def _is_plain(call: nodes.Call, method: nodes.Getattr) -> bool:
    """Whether it calls a method that texts have, and its arguments stand in the template."""
    is_constant = all(isinstance(argument, nodes.Const) for argument in call.args)
    is_more = call.kwargs or call.dyn_args is not None or call.dyn_kwargs is not None
    return is_constant and not is_more and method.attr in TEXT_METHODS


def _write_constant(argument: nodes.Expr) -> str:
    return repr(argument.as_const())


class PlainDataEnvironment(ImmutableSandboxedEnvironment):
    """The immutable sandbox, quicker on dictionaries, namespaces, loops and texts."""

    code_generator_class = PlainDataCodeGenerator

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
        """Call what a template calls; a text's method and a namespace take no context, and have
        no flags to ask."""
        is_text_method = type(obj) is BuiltinMethodType and type(obj.__self__) is str
        if is_text_method or obj is self.globals["namespace"]:
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
