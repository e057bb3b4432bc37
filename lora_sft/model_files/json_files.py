"""Read the JSON files of models and adapters: whatever is wrong with one is one error.

A download may break off, a disk may lose a block, and a user may edit a file. So a file may be
empty, cut, not UTF-8, not JSON, or hold another kind of value than its reader expects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from lora_sft.errors import ModelError

REPLACE_IT = "download or copy the file again, or correct it"

# Field -> its type, such as `int | None`, `Mapping[str, float]` or `list[str]`.
Kinds = Mapping[str, Any]


def read_json_object(path: Path, kinds: Kinds | None = None, *, fix: str = REPLACE_IT) -> Any:
    """Return the JSON object in a file.

    Args:
        path: The file.
        kinds: The types of the fields that the caller reads. A field may be missing.
        fix: What the user can do about a damaged file.

    Raises: ModelError that names the file, if it cannot be read, if it is not JSON, or if a field
        has another type.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _damaged(path, f"cannot be read: {error.strerror}", fix) from error
    except UnicodeDecodeError as error:
        raise _damaged(path, "is not a text in UTF-8", fix) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"is not JSON: {error}", fix) from error
    if not isinstance(document, dict):
        raise _damaged(path, "does not hold a JSON object", fix)
    for name, kind in (kinds or {}).items():
        if name in document and not is_of_kind(document[name], kind):
            what = f"{name} must be {describe_kind(kind)}, not {json.dumps(document[name])[:80]}"
            raise ModelError(f"{path.name}: {what}", f"{path}  {name}", fix)
    return document


def _damaged(path: Path, what: str, fix: str) -> ModelError:
    return ModelError(f"{path.name} {what}", str(path), fix)


def is_of_kind(value: Any, kind: Any) -> bool:
    """Return whether a JSON value has a type, such as `list[str]`, `int | None` or `float`.

    As in JSON, an integer is also a float, and true is not a number.
    """
    if isinstance(kind, UnionType):
        return any(is_of_kind(value, each) for each in get_args(kind))
    plain, inner = get_origin(kind) or kind, get_args(kind)
    if plain is list:
        return isinstance(value, list) and all(is_of_kind(each, *inner) for each in value)
    if plain is dict:
        items = value.values() if isinstance(value, dict) else (None,)
        return isinstance(value, dict) and all(is_of_kind(each, inner[1]) for each in items)
    if plain is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if plain is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return plain is Any or isinstance(value, plain)


_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def describe_kind(kind: Any) -> str:
    """Return a type in words, for an error: `a whole number or null`."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return " or ".join(_WORDS[get_origin(each) or each] for each in kinds)
