"""Turn the numbers of a `ClassLabel` column into the names of the classes.

Data sets of the Hub store the names beside the table, in the metadata of its schema (datasets 5
`Features`). -1 means that nobody labelled the row, so it becomes null.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

METADATA_KEY = b"huggingface"


def find_class_readers(schema: pa.Schema) -> dict[str, Callable[[Any], Any]]:
    """Return a function for each column of class numbers, or of lists of them."""
    readers = {}
    for column, feature in _read_features(schema).items():
        names, is_list = _find_names(feature)
        if names is not None:
            readers[column] = _make_list_reader(names) if is_list else _make_reader(names)
    return readers


def _read_features(schema: pa.Schema) -> Mapping[str, Any]:
    try:
        features = json.loads((schema.metadata or {})[METADATA_KEY])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _find_names(feature: Any) -> tuple[Sequence[str] | None, bool]:
    """Return the class names of a feature, and whether its values are lists."""
    is_list = isinstance(feature, dict) and "feature" in feature
    inner = feature["feature"] if is_list else feature
    is_class = isinstance(inner, dict) and inner.get("_type") == "ClassLabel"
    names = inner.get("names") if is_class else None
    return (names if isinstance(names, list) else None), is_list


def _make_reader(names: Sequence[str]) -> Callable[[Any], Any]:
    def read(number: Any) -> Any:
        if not isinstance(number, int) or number >= len(names):
            return number
        return names[number] if number >= 0 else None

    return read


def _make_list_reader(names: Sequence[str]) -> Callable[[Any], Any]:
    read = _make_reader(names)
    return lambda numbers: [read(number) for number in numbers]
