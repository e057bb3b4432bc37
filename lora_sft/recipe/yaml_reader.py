"""Read YAML strictly: return each value with its line, or report why it is refused.

This reader differs from `yaml.safe_load` in two ways:

- Scalars follow the core schema of YAML 1.2 (section 10.3.2). So `2e-4` is a number and `010` is
  ten, while `on`, `no`, `1:30`, `1_000` and dates are text.
- It refuses everything that can hide the meaning of a file: repeated keys, tags, anchors, aliases,
  merge keys and several documents. It also refuses keys that are not text, and files that are too
  large or nested too deep.

The reader follows parser events instead of `yaml.compose`: only events show whether a tag was
written out. This is the only file that imports PyYAML.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from lora_sft.recipe.fault_list import FaultList
from lora_sft.recipe.written import COMMAND_LINE, Origin, Written, join

MAX_FILE_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_NUMBER_CHARACTERS = 100

_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_BOOL = {
    "true": True, "True": True, "TRUE": True,
    "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_INTEGER = re.compile(r"[-+]?[0-9]+")
_BASED_INTEGER = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT = re.compile(r"[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN")

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml_file(path: Path, label: str, faults: FaultList) -> Written | None:
    """Read one file.

    Args:
        path: The file.
        label: The file's name in messages.
        faults: The list to which faults are added.

    Returns: The mapping in the file, or None if it cannot be used at all.
    """

    def origin_of(line: int) -> Origin:
        return Origin(label, line, path.parent)

    text = _read_text(path, origin_of(1), faults)
    if text is None:
        return None
    root = _Builder(origin_of, faults).build(text)
    if root is None:
        return None
    if root.value is None:
        faults.add("the recipe is empty", root.origin, fix="start with `model:` and `data:`")
        return None
    if not isinstance(root.value, dict):
        faults.add(
            "a recipe must be a mapping of sections, but this file is "
            f"{_describe_value(root.value)}",
            root.origin,
            fix="start with `model: ...` at the beginning of a line",
        )
        return None
    return root


def read_yaml_value(text: str, faults: FaultList, dotted: str) -> Written | None:
    """Read the value of one command-line override by the same rules as a file."""
    origin = Origin(COMMAND_LINE, None, Path.cwd())
    return _Builder(lambda _line: origin, faults, dotted).build(text)


def write_yaml(data: Any) -> str:
    """Return plain data as YAML text that `read_yaml_file` reads back unchanged."""
    return str(yaml.dump(data, Dumper=_make_dumper(), sort_keys=False, allow_unicode=True))


def write_yaml_inline(data: Any) -> str:
    """Return plain data as YAML on one line, as a person would write it after `key: `."""
    text = yaml.dump(
        data, Dumper=_make_dumper(), default_flow_style=True, width=10**6, allow_unicode=True
    )
    return str(text).removesuffix("...\n").strip()


def resolve_scalar(text: str) -> Any:
    """Return the value of an unquoted scalar in the core schema of YAML 1.2."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if len(text) > MAX_NUMBER_CHARACTERS:
        return text
    if _INTEGER.fullmatch(text):
        return int(text)
    if _BASED_INTEGER.fullmatch(text):
        return int(text, base=0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL_FLOAT.fullmatch(text):
        return float(text.lower().replace(".", ""))
    return text


class _Builder:
    """Builds a tree of `Written` values from the events of one text."""

    def __init__(
        self, origin_of: Callable[[int], Origin], faults: FaultList, prefix: str = ""
    ) -> None:
        self._origin_of = origin_of
        self._faults = faults
        self._prefix = prefix
        self._events: Iterator[Any] = iter(())

    def build(self, text: str) -> Written | None:
        """Return the tree of the only document in `text`, or None after a syntax error."""
        self._events = yaml.parse(text, Loader=_Loader)
        try:
            return self._build_stream()
        except yaml.YAMLError as error:
            self._add_syntax_fault(error)
            return None

    def _build_stream(self) -> Written | None:
        next(self._events)
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            return Written(None, self._origin_of(1))
        first = next(self._events)
        root = self._build_node(first, self._prefix, self._origin_of(_line(first)), depth=1)
        next(self._events)
        event = next(self._events)
        if isinstance(event, yaml.DocumentStartEvent):
            self._faults.add(
                "a recipe must be one YAML document, but a second one starts here",
                self._origin_of(_line(event)),
                fix="delete the `---` line, or keep the second recipe in its own file",
            )
        return root

    def _build_node(self, event: Any, path: str, origin: Origin, depth: int) -> Written:
        """Return the value that starts at `event`, and record its faults."""
        refusal = _find_form_fault(event)
        if refusal:
            self._faults.add(refusal[0], self._origin_of(_line(event)), path, refusal[1])
        if isinstance(event, yaml.ScalarEvent):
            plain = event.style is None or event.style == ""
            return Written(resolve_scalar(event.value) if plain else event.value, origin)
        if isinstance(event, yaml.AliasEvent):
            return Written(None, origin)
        if depth > MAX_DEPTH:
            self._skip_collection()
            self._faults.add(
                f"the value is nested more than {MAX_DEPTH} levels deep",
                origin,
                path,
                "write it with fewer levels",
            )
            return Written(None, origin)
        if isinstance(event, yaml.SequenceStartEvent):
            return Written(self._build_items(path, depth), origin)
        return Written(self._build_mapping(path, depth), origin)

    def _build_items(self, path: str, depth: int) -> list[Written]:
        items: list[Written] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            origin = self._origin_of(_line(event))
            items.append(self._build_node(event, join(path, len(items)), origin, depth + 1))
        return items

    def _build_mapping(self, path: str, depth: int) -> dict[str, Written]:
        mapping: dict[str, Written] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            origin = self._origin_of(_line(event))
            key = self._read_key(event, path, origin)
            dotted = join(path, key if key is not None else "?")
            value = self._build_node(next(self._events), dotted, origin, depth + 1)
            if key is None:
                continue
            if key in mapping:
                self._add_duplicate(key, dotted, mapping[key].origin, origin)
                continue
            mapping[key] = value
        return mapping

    def _read_key(self, event: Any, path: str, origin: Origin) -> str | None:
        if not isinstance(event, yaml.ScalarEvent):
            if not isinstance(event, yaml.AliasEvent):
                self._skip_collection()
            dotted = join(path, "?")
            self._faults.add("a key must be text", origin, dotted, "write a plain word as the key")
            return None
        refusal = _find_form_fault(event)
        plain = event.style is None or event.style == ""
        if plain and event.value == "<<":
            refusal = ("merge keys (`<<`) are not supported", "use `extends: other.yaml`")
        elif plain and not isinstance(resolve_scalar(event.value), str):
            refusal = (f"a key must be text, but `{event.value}` is not", f'write "{event.value}":')
        if refusal:
            self._faults.add(refusal[0], origin, join(path, str(event.value)), refusal[1])
            return None
        return str(event.value)

    def _add_duplicate(self, key: str, dotted: str, first: Origin, second: Origin) -> None:
        self._faults.add(
            f'"{key}" is written twice, on lines {first.line} and {second.line}',
            second,
            dotted,
            "keep one of them",
        )

    def _skip_collection(self) -> None:
        """Skip the rest of a collection whose start event was already read."""
        open_collections = 1
        while open_collections:
            event = next(self._events)
            if isinstance(event, yaml.CollectionStartEvent):
                open_collections += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                open_collections -= 1

    def _add_syntax_fault(self, error: yaml.YAMLError) -> None:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        self._faults.add(
            f"not valid YAML: {problem}",
            self._origin_of(1 if mark is None else mark.line + 1),
            self._prefix,
            _syntax_fix(str(problem)),
        )


def _find_form_fault(event: Any) -> tuple[str, str] | None:
    """Return the fault and the fix of a node that is refused because of its form, or None."""
    if isinstance(event, yaml.AliasEvent):
        return f"aliases (`*{event.anchor}`) are not supported", "write the whole value here"
    if event.anchor is not None:
        return f"anchors (`&{event.anchor}`) are not supported", f"delete `&{event.anchor}`"
    if event.tag is not None:
        return f"tags (`{_short_tag(event.tag)}`) are not supported", "write the plain value"
    return None


def _short_tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")


def _syntax_fix(problem: str) -> str:
    if "\\t" in problem or "tab" in problem:
        return "indent with spaces, not tabs"
    if "mapping values" in problem:
        return 'put quotes around a value that contains ": "'
    return "check the indentation, quotes and brackets just before this line"


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _describe_value(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"the single value {value!r}"


def _read_text(path: Path, origin: Origin, faults: FaultList) -> str | None:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            faults.add(
                f"the file has {path.stat().st_size:,} bytes, but a recipe may have at most "
                f"{MAX_FILE_BYTES:,}",
                origin,
                fix="check that this file is a recipe and not a data file",
            )
            return None
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        faults.add(
            f"cannot read the file: {error.strerror}",
            origin,
            fix="check the path and your permission to read it",
        )
    except UnicodeDecodeError as error:
        faults.add(f"the file is not UTF-8 (byte {error.start})", origin, fix="save it as UTF-8")
    return None


def _make_dumper() -> Any:
    """Return PyYAML's dumper that also quotes text which YAML 1.2 would read as another type."""

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def represent_text(dumper: Any, text: str) -> Any:
        style = None if isinstance(resolve_scalar(text), str) else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, represent_text)
    return Dumper
