"""Metrics of extraction: a JSON value is compared with the expected one, from 0 to 1.

An answer or a reference is the text of a JSON value, or the value itself. Values are compared after
parsing, so white space and the order of keys do not matter. Numbers compare as numbers (1 equals
1.0), and true is not 1. An answer that is not JSON is unparseable: it is wrong, and every expected
field is wrong. So is an answer of None.

Fields are those at the top level of an object. They are counted over all rows together. A field is
right if the answer has its key with an equal value.

Source:
    RFC 8259, "The JavaScript Object Notation (JSON) data interchange format",
    https://www.rfc-editor.org/rfc/rfc8259. The figures of fields are precision and recall.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple, NoReturn

_UNPARSEABLE = object()


def exact_match(answers: Sequence[Any], references: Sequence[Any]) -> float:
    """Return the share of answers whose value equals the reference."""
    pairs = zip(answers, references, strict=True)
    return fmean(
        _is_json(answer) and _are_equal(_parse(answer), _parse(reference))
        for answer, reference in pairs
    )


def valid_json(answers: Sequence[Any], references: Sequence[Any]) -> float:
    """Return the share of answers that are JSON. NaN and Infinity are no JSON."""
    return fmean(_is_json(answer) for answer in answers)


def field_accuracy(answers: Sequence[Any], references: Sequence[Any]) -> float:
    """Return the share of expected fields that are right, or 0 if no field is expected."""
    fields = _count_fields(answers, references)
    return _divide(fields.right, fields.expected)


def field_recall(answers: Sequence[Any], references: Sequence[Any]) -> float:
    """Return the share of expected fields that are right. This is the figure of `field_accuracy`.

    It has a second name because it belongs to `field_precision`.
    """
    return field_accuracy(answers, references)


def field_precision(answers: Sequence[Any], references: Sequence[Any]) -> float:
    """Return the share of produced fields that are right, or 0 if no field is produced."""
    fields = _count_fields(answers, references)
    return _divide(fields.right, fields.produced)


class _Fields(NamedTuple):
    right: int
    produced: int
    expected: int


def _count_fields(answers: Sequence[Any], references: Sequence[Any]) -> _Fields:
    right = produced = expected = 0
    for answer, reference in zip(answers, references, strict=True):
        found, wanted = _read_fields(answer), _read_fields(reference)
        right += sum(_are_equal(found[key], wanted[key]) for key in found.keys() & wanted.keys())
        produced += len(found)
        expected += len(wanted)
    return _Fields(right, produced, expected)


def _read_fields(value: Any) -> Mapping[str, Any]:
    """Return the fields of an object. Another value has none."""
    parsed = _parse(value)
    return parsed if isinstance(parsed, Mapping) else {}


def _is_json(value: Any) -> bool:
    return _parse(value) is not _UNPARSEABLE


def _parse(value: Any) -> Any:
    """Return the value of a JSON text, or `_UNPARSEABLE`; any other value is returned unchanged.

    RecursionError: a model that repeats "[" writes a deeper nesting than Python's parser takes.
    """
    if value is None:
        return _UNPARSEABLE
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return _UNPARSEABLE


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _are_equal(one: Any, other: Any) -> bool:
    """Return whether two parsed values are equal.

    Python's own comparison takes true for 1. The pairs are in a list because deeply nested values
    would exceed Python's depth of calls.
    """
    pairs = [(one, other)]
    while pairs:
        a, b = pairs.pop()
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            if a.keys() != b.keys():
                return False
            pairs += [(value, b[key]) for key, value in a.items()]
        elif isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                return False
            pairs += zip(a, b, strict=True)
        elif isinstance(a, bool) != isinstance(b, bool) or a != b:
            return False
    return True


def _divide(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
