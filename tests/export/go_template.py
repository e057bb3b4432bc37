"""Render a Go template with the parts of Go's text/template that our Modelfiles use.

This is independent of the code that writes the templates. The actions are `if`, `else if`, `else`,
`end`, `range $i, $_ := X`, `$name := X`, and an expression to print. An expression is a function
call in prefix form, with parentheses. All other text is copied.
"""

from __future__ import annotations

import re
from typing import Any

ACTION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[()]|[^\s()]+')
FUNCTIONS = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "gt": lambda a, b: a > b,
    "len": len,
    "slice": lambda items, start: items[start:],
    "not": lambda a: not a,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
}


def execute(template: str, data: dict[str, Any]) -> str:
    """Render `template` over `data`."""
    parts = ACTION.split(template)  # text, action, text, ...
    tokens = [(index % 2 == 1, part) for index, part in enumerate(parts)]
    out: list[str] = []
    position = _run(tokens, 0, data, {"$": data}, out, live=True)
    assert position == len(tokens), "there is one `end` too many"
    return "".join(out)


def _run(tokens, position, dot, variables, out, *, live):
    """Run a block, and return the index of the token that ends it."""
    while position < len(tokens):
        is_action, text = tokens[position]
        words = text.split() if is_action else []
        if not is_action:
            if live:
                out.append(text)
        elif words[0] in ("end", "else"):
            return position
        elif words[0] == "if":
            position = _run_if(tokens, position, dot, variables, out, live=live)
        elif words[0] == "range":
            position = _run_range(tokens, position, dot, variables, out, live=live)
        elif len(words) > 1 and words[1] == ":=":
            if live:
                variables[words[0]] = evaluate(text.split(":=", 1)[1], dot, variables)
        elif live:
            out.append(str(evaluate(text, dot, variables)))
        position += 1
    return position


def _run_if(tokens, position, dot, variables, out, *, live):
    done = False
    while True:
        words = tokens[position][1].split()
        is_plain_else = words == ["else"]
        condition = re.sub(r"^\s*(else\s+)?if\b", "", tokens[position][1])
        takes = live and not done and (is_plain_else or bool(evaluate(condition, dot, variables)))
        done = done or takes
        position = _run(tokens, position + 1, dot, variables, out, live=takes)
        if tokens[position][1].split() == ["end"]:
            return position


def _run_range(tokens, position, dot, variables, out, *, live):
    names, items = tokens[position][1].split(":=", 1)
    index, element = re.findall(r"\$\w+", names)
    body = position + 1
    end = _run(tokens, body, dot, dict(variables), [], live=False)
    for number, item in enumerate(evaluate(items, dot, variables) if live else []):
        inner = {**variables, index: number, element: item}
        _run(tokens, body, item, inner, out, live=True)
    return end


def evaluate(text: str, dot: Any, variables: dict[str, Any]) -> Any:
    """Return the value of one expression."""
    value, rest = _call(WORD.findall(text), dot, variables)
    assert not rest, rest
    return value


def _call(words, dot, variables):
    if words[0] not in FUNCTIONS:
        return _operand(words, dot, variables)
    function, rest, arguments = FUNCTIONS[words[0]], words[1:], []
    while rest and rest[0] != ")":
        value, rest = _operand(rest, dot, variables)
        arguments.append(value)
    return function(*arguments), rest


def _operand(words, dot, variables):
    word, rest = words[0], words[1:]
    if word == "(":
        value, rest = _call(rest, dot, variables)
        assert rest[0] == ")"
        return value, rest[1:]
    if word.startswith('"'):
        return word[1:-1], rest
    if word.isdigit():
        return int(word), rest
    name, *fields = word.split(".")
    value = dot if name == "" else variables[name]
    for field in fields:
        value = value[field]
    return value, rest
