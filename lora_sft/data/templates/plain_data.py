"""Read plain data in a template faster than the sandbox does, with the same values.

Every prefix of every conversation is rendered, so rendering takes as long as tokenising. Most of
this time is spent in the sandbox. It checks each value before a template may read it: whether it is
a function, a frame, a coroutine and so on. But templates get only plain data (transformers 5.23
`_plain_template_data`). Three kinds of it always pass the checks: an item of a dictionary, a number
of a loop, and a method of a string. So a template reads these without the checks, and the most
frequent of them without a function call. All other values go through the sandbox. A template sees
exactly the same values as in the sandbox.
"""

from __future__ import annotations

from types import BuiltinMethodType
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

PLAIN_TYPES = frozenset({str, int, float, bool})
DICT_ATTRIBUTES = frozenset(dir(dict))
LOOP_NUMBERS = frozenset({"index", "index0", "revindex", "revindex0", "first", "last", "length"})
# Without `format` and `format_map`: the sandbox wraps them, because they can reach into objects.
TEXT_METHODS = frozenset(
    name for name in dir(str) if not name.startswith("_") and name not in ("format", "format_map")
)


class PlainDataCodeGenerator(CodeGenerator):
    """Writes faster code for the two most frequent expressions of chat templates.

    These are an item of a dictionary (`message.role`), and a method of a string with constant
    arguments (`content.strip('\\n')`). They need no call of the environment. If the value turns out
    to have another type, the code calls the environment, as jinja's own code does.
    """

    def visit_Getattr(  # noqa: N802 (jinja's name)
        self, node: nodes.Getattr, frame: Frame
    ) -> None:
        """Write `value['role']` for a dictionary with this key, else `environment.getattr`."""
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
        """Write `value.strip(...)` for a string, else `environment.call`."""
        method = node.node
        if (
            forward_caller
            or not isinstance(method, nodes.Getattr)
            or not _is_constant_string_call(node, method)
        ):
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


def _is_constant_string_call(call: nodes.Call, method: nodes.Getattr) -> bool:
    """Return whether the call uses a method of strings, and all its arguments are constants."""
    is_constant = all(isinstance(argument, nodes.Const) for argument in call.args)
    is_more = call.kwargs or call.dyn_args is not None or call.dyn_kwargs is not None
    return is_constant and not is_more and method.attr in TEXT_METHODS


def _write_constant(argument: nodes.Expr) -> str:
    return repr(argument.as_const())


class PlainDataEnvironment(ImmutableSandboxedEnvironment):
    """The immutable sandbox, but faster for dictionaries, namespaces, loops and strings."""

    code_generator_class = PlainDataCodeGenerator

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return `obj.attribute`, as the sandbox does.

        A dictionary's own attributes (`items`, `get`) come before its keys, so any other name can
        only be a key.
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
            if type(value) in PLAIN_TYPES:
                return value
        return super().getattr(obj, attribute)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function for a template.

        A method of a string and `namespace` do not need the context, and have no flags that the
        sandbox would check.
        """
        is_text_method = type(obj) is BuiltinMethodType and type(obj.__self__) is str
        if is_text_method or obj is self.globals["namespace"]:
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return obj(*args, **kwargs)
        return super().call(context, obj, *args, **kwargs)
