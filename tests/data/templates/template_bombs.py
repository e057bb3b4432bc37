"""Chat templates that never end, or that fill the memory. Each would need minutes or gigabytes."""

from __future__ import annotations

COLLIDING = 2**61 - 1  # all multiples of this number have the same hash in CPython


def loop_twice(body: str, before: str = "") -> str:
    """Return a template that runs `body` ten billion times."""
    return (
        f"{before}{{% for i in range(99999) %}}{{% for j in range(99999) %}}{body}"
        "{% endfor %}{% endfor %}"
    )


def double(expression: str, start: str = "'x'", before: str = "") -> str:
    """Return a template that makes `ns.s` anew from itself, 60 times."""
    return (
        f"{before}{{% set ns = namespace(s={start}) %}}{{% for i in range(60) %}}"
        f"{{% set ns.s = {expression} %}}{{% endfor %}}"
    )


# A list that holds 2**60 texts, in 60 small lists.
SHARED_LIST = double("[ns.s, ns.s]", "['x']")
SHARED_TUPLE = double("(ns.s, ns.s)", "('x',)")
SHARED_DICT = double("{'a': ns.s, 'b': ns.s}", "{}")
DEEP_TUPLE = (
    "{% set ns = namespace(s=(1,)) %}{% for i in range(9999) %}{% set ns.s = (ns.s,) %}{% endfor %}"
)
COLLIDING_KEYS = ", ".join(f"{COLLIDING * number}: 0" for number in range(1, 2_000))
LONG = "{% set s = 'y' * 1000000 %}"

BOMBS = {
    # loops
    "nested loops": loop_twice(""),
    "a loop with a condition": "{% for i in range(99999) %}{% for j in range(99999) if false %}"
    "{% endfor %}{% endfor %}",
    "a loop with continue": loop_twice("{% continue %}"),
    "a loop with a long body": loop_twice("{% set a = messages.nothing %}" * 300),
    "a loop over a generator": loop_twice("{% set x = messages|map(attribute='x')|list %}"),
    "a loop that calls": loop_twice("{% set x = messages[0].get('role') %}"),
    "a loop that writes": loop_twice("{{ messages }}"),
    "a loop that writes JSON": loop_twice("{{ messages|tojson }}"),
    "a loop that sorts": loop_twice("{{ range(9999)|sort|length }}"),
    "a loop that groups": loop_twice("{{ range(9999)|groupby('real')|list|length }}"),
    "a loop that cuts a text": loop_twice("{% set x = s[1:] %}", LONG),
    "a loop that strips a text": loop_twice("{% set x = s.strip() %}", LONG),
    "a loop that searches a text": loop_twice("{% set x = 'z' in s %}", LONG),
    "a loop that compares texts": loop_twice("{% set x = s == s[:] %}", LONG),
    "a loop that keeps namespaces": loop_twice("{% set ns.a = namespace(a=ns.a) %}", double("1")),
    "a loop that keeps texts": loop_twice(
        "{% set ns.s = [ns.s, s.strip('z')] %}", LONG + double("1")
    ),
    "a recursive loop": "{% for i in [1, 1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "a recursive macro": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(0) }}",
    "a tree of macros": "{% macro f(n) %}{% if n < 60 %}{{ f(n + 1) }}{{ f(n + 1) }}{% endif %}"
    "{% endmacro %}{{ f(0) }}",
    "a recursive block": "{% block a %}{{ self.a() }}{% endblock %}",
    "nested calls": "{% macro d() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call d() %}" * 25
    + "x"
    + "{% endcall %}" * 25,
    # texts that grow
    "doubling with ~": double("ns.s ~ ns.s"),
    "doubling with +": double("ns.s + ns.s"),
    "doubling wide characters": double("ns.s + ns.s", "'\U0001f600'"),
    "doubling with *": double("ns.s * 2"),
    "doubling a list": double("ns.s + ns.s", "[1]"),
    "doubling with join": double("[ns.s, ns.s]|join"),
    "doubling with replace": double("ns.s|replace('x', 'xx')"),
    "doubling with a method": double("ns.s.replace('x', 'xx')"),
    "doubling with %": double("'%s%s' % (ns.s, ns.s)"),
    "doubling with format": double("'{0}{0}'.format(ns.s)"),
    "doubling with a macro": double(
        "d(ns.s)", before="{% macro d(s) %}{{ s }}{{ s }}{% endmacro %}"
    ),
    "doubling with safe": double("ns.s + ns.s", "('x'|safe)"),
    "doubling with urlencode": double("(ns.s ~ ns.s)|urlencode", "'%'"),
    "doubling bytes": double("ns.s + ns.s", "'x'.encode()"),
    # one large value
    "a text of 100 TB": "{% set x = 'x' * 100000000000000 %}",
    "a list of 1 billion items": "{% set x = 1000000000 * [0] %}",
    "a number with 300 million digits": "{{ 9 ** 999999999 }}",
    "squares": double("ns.s * ns.s", "3"),
    "bytes of a number": "{{ (1).to_bytes(3000000000, 'big') }}",
    "a float that is too large": "{{ 10.0 ** 400 }}",
    "center": "{{ 'x'|center(3000000000) }}",
    "ljust": "{% set n = 3000000000 %}{{ messages[0].role.ljust(n) }}",
    "zfill": "{{ 'x'.zfill(3000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(2000000000) }}",
    "printf": "{{ '%2000000000d' % 1 }}",
    "printf with a star": "{{ '%*d' % (2000000000, 1) }}",
    "the filter format": "{{ '%2000000000d'|format(1) }}",
    "format with a width": "{{ '{:2000000000}'.format(1) }}",
    "format with a given width": "{{ '{:{}}'.format(1, 2000000000) }}",
    "round": "{{ 5|round(1000000000, 'ceil') }}",
    "indent": "{{ ('\n' * 100000)|indent(100000, blank=true) }}",
    "wordwrap": "{{ ('x' * 1000000)|wordwrap(1) }}",
    "batch": "{{ [1]|batch(1000000000, 'x')|list }}",
    "slice": "{{ [1]|slice(1000000000)|list }}",
    "range": "{% for i in range(1000000000) %}{% endfor %}",
    "lipsum": "{{ lipsum(1000000) }}",
    "JSON with white space": "{{ messages|tojson(indent=1000000000) }}",
    "the date": "{{ strftime_now('%c' * 3000000) }}",
    "join": LONG + "{{ s.join(range(9999)|map('string')) }}",
    "sum of lists": "{{ ([range(999)|list] * 9999)|sum(start=[]) }}",
    "translate": "{% set s = 'y' * 100000 %}{{ s.translate({121: s}) }}",
    "urlize": "{{ (')' * 80000 ~ 'x)')|urlize }}",
    "a long output": "{{ 'hello ' * 1000000 }}",
    # small values that are large when they are read
    "a shared list is written": SHARED_LIST + "{{ ns.s }}",
    "a shared list is written as JSON": SHARED_LIST + "{{ ns.s|tojson }}",
    "a shared list is compared": SHARED_LIST
    + "{% set a = ns.s %}"
    + SHARED_LIST
    + "{{ ns.s == a }}",
    "a shared tuple is a key": SHARED_TUPLE + "{{ {ns.s: 1} }}",
    "a shared tuple is looked up": SHARED_TUPLE + "{{ {}.get(ns.s) }}",
    "a shared tuple names a filter": SHARED_TUPLE + "{{ ns.s is filter }}",
    "a shared tuple names an attribute": SHARED_TUPLE + "{{ 'x'|attr(ns.s) }}",
    "a view of a shared dictionary": SHARED_DICT + "{{ ns.s.keys().mapping }}",
    "a deep tuple is a key": DEEP_TUPLE + "{{ ns.s in {} }}",
    "a namespace that holds itself": "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
    # numbers with the same hash
    "unique": f"{{{{ range(0, 99999 * {COLLIDING}, {COLLIDING})|unique|list|length }}}}",
    "fromkeys": f"{{{{ dict.fromkeys(range(0, 99999 * {COLLIDING}, {COLLIDING}))|length }}}}",
    "keys with one hash": loop_twice("{% set x = d[0] %}", f"{{% set d = {{{COLLIDING_KEYS}}} %}}"),
    # what is computed or refused when the template is compiled
    "a constant text": "{{ 'a' * 10 ** 10 }}",
    "a constant filter": "{{ 'a'|center(10 ** 10) }}",
    "a long template": "{{ x }}" * 20_000,
    "nested parentheses": "{{ " + "(" * 3_000 + "1" + ")" * 3_000 + " }}",
    "nested conditions": "{% if x %}" * 3_000 + "{% endif %}" * 3_000,
    "many branches": "{% if x %}" + "{% elif y %}" * 8_000 + "{% endif %}",
}
