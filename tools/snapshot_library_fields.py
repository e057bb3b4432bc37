"""Write a snapshot of the fields of SFTConfig, LoraConfig and BitsAndBytesConfig for the recipe.

    python tools/snapshot_library_fields.py           # write the snapshot
    python tools/snapshot_library_fields.py --check   # print the differences, exit with code 1

Run it after an upgrade of trl, transformers, peft or bitsandbytes. The recipe reader uses the
snapshot, because importing the libraries takes seconds. So an error in a recipe is reported within
milliseconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

from lora_sft.recipe.fields import Field, make_field

SNAPSHOT = Path(__file__).parents[1] / "lora_sft" / "recipe" / "library_fields.json"
LIBRARIES = ("trl", "transformers", "peft", "bitsandbytes")

# The types of BitsAndBytesConfig's fields that follow neither from annotations (it has none) nor
# from defaults. Source: its docstring and __init__ in transformers 5.23.
BITS_AND_BYTES_TYPES: dict[str, Field] = {
    "llm_int8_skip_modules": Field(("array", "null"), items="string"),
    "bnb_4bit_compute_dtype": Field(("string", "null"), choices=("bfloat16", "float16", "float32")),
    "bnb_4bit_quant_type": Field(("string",), choices=("nf4", "fp4")),
    "bnb_4bit_quant_storage": Field(
        ("string", "null"),
        choices=("uint8", "int8", "bfloat16", "float16", "float32", "float64"),
    ),
}


def make_snapshot() -> dict[str, Any]:
    """Return the fields of the installed libraries as JSON data."""
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig
    from trl import SFTConfig  # type: ignore[attr-defined]

    return {
        "versions": {name: version(name) for name in LIBRARIES},
        "SFTConfig": _describe_dataclass(SFTConfig),
        "LoraConfig": _describe_dataclass(LoraConfig),
        "BitsAndBytesConfig": _describe_signature(BitsAndBytesConfig),
    }


def find_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the dotted names of the fields that differ between two snapshots."""
    return [
        f"{group}.{name}"
        for group in sorted(old.keys() | new.keys())
        for name in sorted(old.get(group, {}).keys() | new.get(group, {}).keys())
        if _sort_types(old.get(group, {}).get(name)) != _sort_types(new.get(group, {}).get(name))
    ]


def _sort_types(described: Any) -> Any:
    """Return a field's description with its types sorted.

    The order of the types is not stable. `typing` keeps one object for `str | list[str]` and
    `list[str] | str`, so the library that is imported first decides the order.
    """
    if not isinstance(described, dict) or "types" not in described:
        return described
    return {**described, "types": sorted(described["types"])}


def _describe_dataclass(config: Any) -> dict[str, Any]:
    hints = get_type_hints(config)
    return {
        field.name: _to_json(_describe_field(field, hints[field.name]))
        for field in dataclasses.fields(config)
        if field.init
    }


def _describe_field(field: dataclasses.Field[Any], hint: Any) -> Field:
    described = make_field(hint, default=_find_default(field))
    choices = field.metadata.get("choices")
    if choices:
        described = dataclasses.replace(described, choices=tuple(choices))
    if described.python_class and not described.types:
        described = dataclasses.replace(described, types=("null",))
    return described


def _find_default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _describe_signature(config: Any) -> dict[str, Any]:
    parameters = inspect.signature(config.__init__).parameters
    described = {}
    for name, parameter in parameters.items():
        if name == "self" or parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        field = BITS_AND_BYTES_TYPES.get(name) or make_field(type(parameter.default))
        described[name] = _to_json(dataclasses.replace(field, default=parameter.default))
    return described


def _to_json(field: Field) -> dict[str, Any]:
    """Return a field without its empty entries, so that the file is small and loads fast."""
    default = field.default
    if not isinstance(default, (bool, int, float, str, list, dict, type(None))):
        default = None
    described = {
        "types": list(field.types),
        "choices": list(field.choices),
        "items": field.items,
        "python_class": field.python_class,
        "default": default.value if hasattr(default, "value") else default,
    }
    return {key: value for key, value in described.items() if value not in (None, "", [], {})}


def _write(snapshot: dict[str, Any]) -> None:
    lines = []
    for group, entries in snapshot.items():
        body = ",\n".join(
            f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(entries.items())
        )
        lines.append(f" {json.dumps(group)}: {{\n{body}\n }}")
    SNAPSHOT.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main() -> int:
    """Write the snapshot, or compare it with the installed libraries."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; print the differences and exit with code 1 if there are any",
    )
    snapshot = make_snapshot()
    if not parser.parse_args().check:
        _write(snapshot)
        return 0
    differences = find_differences(json.loads(SNAPSHOT.read_text(encoding="utf-8")), snapshot)
    for name in differences:
        print(name)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
