"""The Python code that a chat template is compiled to.

It reads plain data without calls of the environment, and it spends the budget of the render.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame

from lora_sft.data.templates.plain_data import (
    LOOP_NUMBERS,
    TEXT_METHODS,
    PlainDataCodeGenerator,
)
from lora_sft.data.templates.render_budget import OPERATION_WORK

# These compare only as many characters as their argument has.
START_METHODS = frozenset({"startswith", "endswith"})
# These write at most a few times as much as they read, if their arguments are short.
LINEAR_METHODS = frozenset(
    {"capitalize", "casefold", "count", "find", "index", "lower", "lstrip", "partition", "rfind"}
    | {"removeprefix", "removesuffix", "rpartition", "rstrip", "strip", "swapcase", "upper"}
    | {name for name in TEXT_METHODS if name.startswith("is")}
)
SHORT_CHARACTERS = 32
# The name of the filter that spends the work of a loop's condition. No template can write it.
CONDITION = "loop condition"
# The body of these spends its work each time that it runs.
SHORT_BRANCH = 16  # operations
MACRO_OPERATIONS = 10  # as much work as making a macro takes
COMPARISONS = {"eq": "==", "ne": "!=", "gt": ">", "gteq": ">=", "lt": "<", "lteq": "<="}
COMPARISONS |= {"in": "in", "notin": "not in"}
BODIES = (nodes.Template, nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)


class LimitedCodeGenerator(PlainDataCodeGenerator):
    """Writes code that spends the budget of the render, and reads plain data fast.

    Loops, macros and blocks spend the work of their body each time that it runs. Operators spend
    the size of what they read or make.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._work_of_bodies: dict[int, int] = {}  # by the id of the list of statements
        self._outputs: list[str] = []  # the values that are being written, by the name in the code

    def write_commons(self) -> None:
        """Write the beginning of the function that renders the template or a block."""
        super().write_commons()
        self.writeline("budget = environment.get_budget()")

    def visit_Template(  # noqa: N802 (jinja's name)
        self, node: nodes.Template, frame: Frame | None = None
    ) -> None:
        """Write the module, after counting the operations of all bodies in it."""
        self._count_operations(node)
        super().visit_Template(node, frame)

    def _count_operations(self, node: nodes.Node) -> int:
        """Return how many operations a node does. Keep those of its bodies, which spend their own.

        Each part of an expression is an operation. A body is what may run several times, and a
        branch of a condition that is not short.
        """
        count = MACRO_OPERATIONS if isinstance(node, (nodes.Macro, nodes.CallBlock)) else 1
        if isinstance(node, nodes.Dict):  # its keys may be chosen so that all are compared
            count += sum(not is_text(item.key) for item in node.items) ** 2
        for name, value in node.iter_fields():
            children = value if isinstance(value, list) else [value]
            part = sum(self._count_operations(each) for each in children if is_node(each))
            if (isinstance(node, BODIES) and name == "body") or (
                isinstance(node, nodes.If) and name in ("body", "else_") and part > SHORT_BRANCH
            ):
                self._work_of_bodies[id(value)] = OPERATION_WORK * (1 + part)
            elif isinstance(node, nodes.For) and name == "test" and part:
                work = nodes.Const(OPERATION_WORK * (1 + part))
                node.test = nodes.Filter(node.test, CONDITION, [work], [], None, None)
            else:
                count += part
        return count

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        """Write statements. If they are a body, the first one spends its work."""
        work = self._work_of_bodies.get(id(nodes))
        if work is not None:
            self.writeline(f"budget.left -= {work}")
            self.writeline("if budget.left < 0: budget.spend(0)")
        super().blockvisit(nodes, frame)

    def visit_Getattr(  # noqa: N802 (jinja's name)
        self, node: nodes.Getattr, frame: Frame
    ) -> None:
        """Write `loop.first` without a call."""
        if node.attr in LOOP_NUMBERS and isinstance(node.node, nodes.Name):
            loop = self.temporary_identifier()
            self.write(f"({loop}.{node.attr} if type({loop} := ")
            self.visit(node.node, frame)
            self.write(f") is LoopContext else environment.getattr({loop}, {node.attr!r}))")
        else:
            super().visit_Getattr(node, frame)

    def visit_Getitem(  # noqa: N802 (jinja's name)
        self, node: nodes.Getitem, frame: Frame
    ) -> None:
        """Write `value['role']` for a dictionary with this key, else `environment.getitem`."""
        if isinstance(node.arg, nodes.Slice):
            self._write_spending("cut", node.node, frame)
            self.write("[")
            self.visit(node.arg, frame)
            self.write("]")
        elif isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            value, name = self.temporary_identifier(), repr(node.arg.value)
            self.write(f"({value}[{name}] if type({value} := ")
            self.visit(node.node, frame)
            self.write(f") is dict and {name} in {value} else ")
            self.write(f"environment.getitem({value}, {name}))")
        elif isinstance(node.arg, nodes.Const) and node.arg.value in (0, -1):
            items, place = self.temporary_identifier(), int(node.arg.value)
            self.write(f"({items}[{place}] if type({items} := ")
            self.visit(node.node, frame)
            self.write(f") is list and {items} else environment.getitem({items}, {place}))")
        else:
            super().visit_Getitem(node, frame)

    def _write_spending(self, method: str, value: nodes.Expr, frame: Frame) -> None:
        """Write an expression whose value a method of the budget returns."""
        self.write(f"budget.{method}(")
        self.visit(value, frame)
        self.write(")")

    def visit_Call(  # noqa: N802 (jinja's name)
        self, node: nodes.Call, frame: Frame, forward_caller: bool = False
    ) -> None:
        """Write `value.strip(...)` for a string, else `environment.call`."""
        method = node.node
        if (
            forward_caller
            or not isinstance(method, nodes.Getattr)
            or not is_constant_text_call(node, method)
        ):  # not `super`: its code would call the method without spending work
            CodeGenerator.visit_Call(self, node, frame, forward_caller=forward_caller)
            return
        text = self.temporary_identifier()
        arguments = ", ".join(repr(argument.as_const()) for argument in node.args)
        if method.attr == "split":
            self.write(f"(budget.split({text}, {arguments})")
        elif method.attr in START_METHODS:
            self.write(f"({text}.{method.attr}({arguments})")
        else:
            self.write(f"((budget.spend(len({text})) or {text}.{method.attr}({arguments}))")
        self.write(f" if type({text} := ")
        self.visit(method.node, frame)
        self.write(f") is str else environment.call(context, environment.getattr({text}, ")
        self.write(repr(method.attr) + ")")
        scopes = {"_loop_vars": frame.loop_frame, "_block_vars": frame.block_frame}
        self.signature(node, frame, {name: name for name, is_there in scopes.items() if is_there})
        self.write("))")

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:  # noqa: N802 (jinja's name)
        """Write `a + b + c`. After every second variable value, the size of the sum is spent.

        So no sum is much larger than twice the largest value when its size is spent.
        """
        values = [node.left, node.right] if is_number(node) else list_summands(node)
        spending = set() if is_number(node) else find_places_to_spend(values)
        for place in range(len(values) - 1, 0, -1):
            self.write("budget.wrote((" if place in spending else "(")
        self.visit(values[0], frame)
        for place, value in enumerate(values[1:], 1):
            self.write(" + ")
            self.visit(value, frame)
            self.write("))" if place in spending else ")")

    def visit_Sub(self, node: nodes.BinExpr, frame: Frame) -> None:  # noqa: N802 (jinja's name)
        """Write `a - b`."""
        if is_number(node):
            self.write("(")
            self.visit(node.left, frame)
            self.write(" - ")
            self.visit(node.right, frame)
            self.write(")")
        else:
            self._write_operator(node, frame)

    def _write_operator(self, node: nodes.BinExpr, frame: Frame) -> None:
        """Write an operator that estimates the size of its result before it computes it."""
        self.write(f"budget.calculate({node.operator!r}, ")
        self.visit(node.left, frame)
        self.write(", ")
        self.visit(node.right, frame)
        self.write(")")

    visit_Mul = visit_Div = visit_FloorDiv = visit_Mod = visit_Pow = _write_operator  # noqa: N815

    def visit_Concat(  # noqa: N802 (jinja's name)
        self, node: nodes.Concat, frame: Frame
    ) -> None:
        """Write `a ~ b`."""
        if frame.eval_ctx.volatile:
            self.write("budget.join_html(context.eval_ctx.volatile, (")
        else:
            self.write("budget.join_html(True, (" if frame.eval_ctx.autoescape else "budget.join((")
        for value in node.nodes:
            self.visit(value, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(  # noqa: N802 (jinja's name)
        self, node: nodes.Compare, frame: Frame
    ) -> None:
        """Write `a == b` or `a in b`. A comparison reads at most all of one side."""
        values = [node.expr, *(operand.expr for operand in node.ops)]
        operators = [COMPARISONS[operand.op] for operand in node.ops]
        is_search = any(operator.endswith("in") for operator in operators)
        is_free = not is_search and len(values) == 2 and any(map(is_small, values))
        self.write("(")
        for place, value in enumerate(values):
            self.write(f" {operators[place - 1]} " if place else "")
            if is_free or is_small(value) or (len(values) == 2 and place and not is_search):
                self.visit(value, frame)
            elif is_search and place:
                self._write_searched(value, frame)
            else:
                self._write_spending("compared", value, frame)
        self.write(")")

    def _write_searched(self, value: nodes.Expr, frame: Frame) -> None:
        name = self.temporary_identifier()
        self.write(f"({name} if type({name} := ")
        self.visit(value, frame)
        self.write(f") is dict else budget.searched({name}))")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802 (jinja's name)
        """Write a dictionary. Finding the place of a key takes as long as reading the key."""
        self.write("{")
        for item in node.items:
            if is_small(item.key):
                self.visit(item.key, frame)
            else:
                self._write_spending("compared", item.key, frame)
            self.write(": ")
            self.visit(item.value, frame)
            self.write(", ")
        self.write("}")

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        """Write what stands before a value that becomes a part of the text."""
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            is_html = "context.eval_ctx.autoescape"
            self.write(f"(escape if {is_html} else str)(budget.compared(")
            self._outputs.append("")
        else:
            name = self.temporary_identifier()
            self.write(f"({name} if type({name} := ")
            self._outputs.append(name)

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        """Write what stands after a value that becomes a part of the text."""
        name = self._outputs.pop()
        self.write(f") is str else budget.show({name}))" if name else "))")


def is_node(value: Any) -> bool:
    """Return whether a value is a part of the template."""
    return isinstance(value, nodes.Node)


def list_summands(node: nodes.Expr) -> list[nodes.Expr]:
    """Return a, b and c of `a + b + c`."""
    return [*list_summands(node.left), node.right] if isinstance(node, nodes.Add) else [node]


def find_places_to_spend(values: list[nodes.Expr]) -> set[int]:
    """Return the places in a sum after which its size is spent.

    They are the end, and the place before each third variable value.
    """
    places, num_variable = {len(values) - 1}, 0
    for place, value in enumerate(values):
        num_variable += not isinstance(value, nodes.Const)
        if num_variable == 3:
            places.add(place - 1)
            num_variable = 2
    return places


def is_text(node: nodes.Expr) -> bool:
    """Return whether an expression is a constant text."""
    return isinstance(node, nodes.Const) and isinstance(node.value, str)


def is_number(node: nodes.Expr) -> bool:
    """Return whether an expression gives a number if it gives anything."""
    if isinstance(node, nodes.Const):
        return isinstance(node.value, (int, float))
    if isinstance(node, (nodes.Add, nodes.Sub)):
        return is_number(node.left) or is_number(node.right)
    return isinstance(node, nodes.Filter) and node.name in ("length", "count")


def is_small(node: nodes.Expr) -> bool:
    """Return whether an expression gives a value that is compared at once."""
    always = (nodes.Const, nodes.Compare, nodes.Test, nodes.Not)
    if isinstance(node, (nodes.List, nodes.Tuple)):
        return all(isinstance(item, nodes.Const) for item in node.items)
    return isinstance(node, always) or is_number(node)


def is_constant_text_call(call: nodes.Call, method: nodes.Getattr) -> bool:
    """Return whether a call may be a method of a text with arguments that are short constants."""
    if call.kwargs or call.dyn_args or call.dyn_kwargs:
        return False
    values = [argument.value for argument in call.args if isinstance(argument, nodes.Const)]
    if len(values) < len(call.args):
        return False
    if method.attr == "split":
        return len(values) == 1 and bool(values[0])
    if method.attr not in START_METHODS | LINEAR_METHODS:
        return False
    return sum(len(repr(value)) for value in values) <= SHORT_CHARACTERS
