"""The faster environment shows a template the same values as the sandbox of transformers."""

import itertools

import jinja2
import pytest
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils.chat_template_utils import _compile_jinja_template

from lora_sft.data.templates.template_environment import LimitedEnvironment, compile_template

NAMESPACE = _compile_jinja_template("").globals["namespace"]


def make_loop():
    loop = LoopContext(iter(["a", "b"]), jinja2.Undefined)
    next(loop)
    return loop


OBJECTS = {
    "dict": lambda: {"role": "user", "items": [1], "_x": 1, "content": None},
    "empty": dict,
    "text": lambda: "hello {0}",
    "list": lambda: [1, 2],
    "number": lambda: 3,
    "namespace": lambda: NAMESPACE(seen=True, last=3, items="own", f="x".upper),
    "loop": make_loop,
    "function": lambda: len,
}
ATTRIBUTES = [
    *("role", "content", "items", "get", "update", "pop", "clear", "missing", "_x", "seen", "last"),
    *("upper", "format", "format_map", "startswith", "append", "index0", "first", "length", "f"),
    *("__class__", "__init__", "__globals__", "__self__", "mro", "cycle", "previtem", "nextitem"),
]


def describe(environment, obj, attribute):
    """Return a value, the name of a method, or the reason why the attribute is undefined."""
    value = environment.getattr(obj, attribute)
    if isinstance(value, jinja2.Undefined):
        return "undefined", value._undefined_exception, value._undefined_message
    if callable(value):
        return "callable", value.__name__, environment.is_safe_callable(value)
    return "value", value


@pytest.mark.parametrize("name", OBJECTS)
def test_every_attribute_is_the_same_as_in_the_sandbox(name):
    reference, ours = ImmutableSandboxedEnvironment(), LimitedEnvironment()
    for attribute in ATTRIBUTES:
        expected = describe(reference, OBJECTS[name](), attribute)
        assert describe(ours, OBJECTS[name](), attribute) == expected, attribute


TEMPLATES = [
    "{% for m in messages %}{{ loop.index0 }}{{ loop.last }}{{ m.role|upper }}{{ m.get('content')"
    " }}{{ m.content.strip().split('a') }}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}{{ messages[0].missing is defined }}{{ messages[-1]['content'][::-1] }}",
    "{{ '{0.role}'.format(messages[0]) }}",
    "{{ messages[0].content.format(1) }}",
    "{{ messages|tojson }}{{ 'x'.join(['a', 'b']) }}{{ dict(a=1)|items|list }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages[0].content.encode.__self__ }}",
    "{{ raise_exception('no') }}",
    "{{ messages[0].content.startswith(1) }}",
    "{% for m in messages %}{% set c = m.content %}{% generation %}{{ loop.first }}{{ c }}"
    "{% set c = 'inner' %}{% for x in 'ab' %}{{ loop.index }}{{ x }}{% endfor %}{{ c }}"
    "{% endgeneration %}{{ c }}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% generation %}{% set ns.n = 2 %}{% set z = 3 %}"
    "{% endgeneration %}{{ ns.n }}{{ z is defined }}",
    "{{ {'strip': 'own'}.strip }}{{ {'role': none}.role }}{{ {'role': 1}.name is defined }}",
    "{{ messages[0].missing.strip() }}",
    "{{ messages[0].role.strip.strip() }}",
    "{% set x = 3 %}{{ x.strip() }}",
    "{{ {'strip': 'own'}.strip('x') }}",
    "{{ messages[0].content.split(sep='a') }}{{ messages[0].content.split(*['a']) }}"
    "{{ messages[0].content.replace('a', 'b', 1).strip().split(messages[0].role[0]) }}",
    "{% macro say(m, end='!') %}{{ m.role.upper() }}{{ end }}{% endmacro %}"
    "{% for m in messages if m.content.strip() %}{{ say(m) }}{{ say(m, end=m.role.title()) }}"
    "{% endfor %}{% macro wrap() %}<{{ caller().strip() }}>{% endmacro %}"
    "{% call wrap() %} {{ messages[0].role.strip('u') }} {% endcall %}",
    "{{ messages|map(attribute='role')|join(' ') }}{{ 'a,b'.split(',')|join('-') }}",
    "{{ namespace(_x=1) }}",
    "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}{{ ns.missing is defined }}"
    "{% for m in messages %}{% set ns.b = namespace(c=loop.index) %}{% endfor %}{{ ns.b.c }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_renders_or_fails_as_in_transformers(template):
    messages = [{"role": "user", "content": " banana {0.__class__} "}, {"role": "b", "content": ""}]
    outcomes = []
    for compiled in (_compile_jinja_template(template), compile_template(template)):
        try:
            outcomes.append(compiled.render(messages=messages))
        except Exception as error:
            outcomes.append((type(error), str(error)))
    assert outcomes[0] == outcomes[1]


def test_the_compared_attributes_include_refusals_and_values():
    environment = ImmutableSandboxedEnvironment()
    kinds = [
        describe(environment, OBJECTS[name](), attribute)[:2]
        for name, attribute in itertools.product(OBJECTS, ATTRIBUTES)
    ]
    assert ("undefined", jinja2.exceptions.SecurityError) in kinds
    assert sum(kind[0] == "value" for kind in kinds) >= 10
