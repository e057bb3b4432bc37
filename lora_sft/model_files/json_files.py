"""Read the JSON files of models and adapters: whatever is wrong with one is one error.

A download may break off, a disk may lose a block, and a user may edit a file. So a file may be
empty, cut, not UTF-8, not JSON, or hold another kind of value than its reader expects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from lora_sft.errors import ModelError

REPLACE_IT = "download or copy the file again, or correct it"

LONGEST_SHOWN_CHARACTERS = 80
UNIONS = (Union, UnionType)
WORDS: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    Sequence: "a list",
    dict: "an object",
    Mapping: "an object",
    type(None): "null",
}

# Field -> its type, such as `int | None`, `Mapping[str, float]` or `list[str]`.
Kinds = Mapping[str, Any]


def read_json_object(
    path: Path,
    kinds: Kinds | None = None,
    *,
    required: Sequence[str] = (),
    fix: str = REPLACE_IT,
) -> Any:
    """Return the JSON object in a file.

    Args:
        path: The file.
        kinds: The types of the fields that the caller reads.
        required: The fields that must be there.
        fix: What the user can do about a damaged file.

    Raises: ModelError that names the file, if it cannot be read, if it is not JSON, if a field has
        another type, or if a required field is missing.
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
    check_fields(document, path, kinds or {}, required=required, fix=fix)
    return document


def check_fields(
    document: Mapping[str, Any],
    path: Path,
    kinds: Kinds,
    *,
    required: Sequence[str] = (),
    fix: str = REPLACE_IT,
) -> None:
    """Check the types of the fields of an object in a JSON file.

    Raises: ModelError that names the file and the field.
    """
    for name in required:
        if name not in document:
            raise _damaged(path, f"has no field {name}", fix)
    for name, kind in kinds.items():
        if name in document and not is_of_kind(document[name], kind):
            found = json.dumps(document[name])[:LONGEST_SHOWN_CHARACTERS]
            what = f"{path.name}: {name} must be {describe_kind(kind)}, not {found}"
            raise ModelError(what, f"{path}  {name}", fix)


def _damaged(path: Path, what: str, fix: str) -> ModelError:
    return ModelError(f"{path.name} {what}", str(path), fix)


def is_of_kind(value: Any, kind: Any) -> bool:
    """Return whether a JSON value has a type, such as `list[str]`, `int | None` or a Literal.

    As in JSON, an integer is also a float, and true is not a number.
    """
    plain, inner = get_origin(kind) or kind, get_args(kind)
    if plain in UNIONS:
        return any(is_of_kind(value, each) for each in inner)
    if plain is Literal:
        return value in inner
    if plain is Any:
        return True
    if plain in (list, Sequence):
        return isinstance(value, list) and all(is_of_kind(each, *inner) for each in value)
    if plain in (dict, Mapping):
        is_object = isinstance(value, dict)
        return is_object and all(is_of_kind(each, inner[1]) for each in value.values())
    allowed = (int, float) if plain is float else plain
    return isinstance(value, allowed) and (plain is bool or not isinstance(value, bool))


def describe_kind(kind: Any) -> str:
    """Return a type in words, for an error: `a whole number or null`."""
    plain, inner = get_origin(kind) or kind, get_args(kind)
    if plain in UNIONS:
        return " or ".join(map(describe_kind, inner))
    if plain is Literal:
        return " or ".join(map(json.dumps, inner))
    return WORDS[plain]
