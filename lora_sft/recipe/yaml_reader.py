"""Strict YAML: the values a person meant, each with its line, or a fault that says why not.

Two departures from a plain `yaml.safe_load`:

- Scalars follow the core schema of YAML 1.2 (section 10.3.2), so `2e-4` is a number, `010` is
  ten, and `on`, `no`, `1:30`, `1_000` and dates stay the text that they look like.
- What makes a file mean something else than it shows is refused: repeated keys, tags, anchors,
  aliases, merge keys, keys that are not text, several documents, extreme size or depth.

Parsing goes by events, not by `compose`: only events still know whether a tag was written out.
This is the only file that knows PyYAML.
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
    """Read one file; None when nothing of it can be used. `label` is its name in messages."""

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
            f"a recipe is a mapping of sections, this is {_kind(root.value)}",
            root.origin,
            fix="start with `model: ...` at the left edge",
        )
        return None
    return root


def read_yaml_value(text: str, faults: FaultList, dotted: str) -> Written | None:
    """Read the value of one command-line override, by the same rules as a file."""
    origin = Origin(COMMAND_LINE, None, Path.cwd())
    return _Builder(lambda _line: origin, faults, dotted).build(text)


def write_yaml(data: Any) -> str:
    """Plain data as YAML text that `read_yaml_file` reads back unchanged."""
    return str(yaml.dump(data, Dumper=_make_dumper(), sort_keys=False, allow_unicode=True))


def write_yaml_inline(data: Any) -> str:
    """Plain data on one line, as a person would write it after `key: `."""
    text = yaml.dump(
        data, Dumper=_make_dumper(), default_flow_style=True, width=10**6, allow_unicode=True
    )
    return str(text).removesuffix("...\n").strip()


def resolve_scalar(text: str) -> Any:
    """The value of an unquoted scalar in YAML 1.2's core schema."""
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
    """Turns the events of one text into a tree of `Written`."""

    def __init__(
        self, origin_of: Callable[[int], Origin], faults: FaultList, prefix: str = ""
    ) -> None:
        self._origin_of = origin_of
        self._faults = faults
        self._prefix = prefix
        self._events: Iterator[Any] = iter(())

    def build(self, text: str) -> Written | None:
        """The tree of the only document in `text`, or None after a syntax error."""
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
                "a recipe is one YAML document, a second starts here",
                self._origin_of(_line(event)),
                fix="delete the `---` line, or keep the second recipe in its own file",
            )
        return root

    def _build_node(self, event: Any, path: str, origin: Origin, depth: int) -> Written:
        """The value that starts at `event`; its faults are recorded and its path tainted."""
        refusal = _refusal(event)
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
                f"nested more than {MAX_DEPTH} levels deep", origin, path, "flatten it"
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
        refusal = _refusal(event)
        plain = event.style is None or event.style == ""
        if plain and event.value == "<<":
            refusal = ("merge keys (`<<`) are not read", "use `extends: other.yaml`")
        elif plain and not isinstance(resolve_scalar(event.value), str):
            refusal = (f"a key must be text, `{event.value}` is not", f'write "{event.value}":')
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
        """Pass over the rest of a collection whose start has been read."""
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


def _refusal(event: Any) -> tuple[str, str] | None:
    """What is wrong with a node before its value is looked at, and the fix."""
    if isinstance(event, yaml.AliasEvent):
        return f"aliases (`*{event.anchor}`) are not read", "write the value out here"
    if event.anchor is not None:
        return f"anchors (`&{event.anchor}`) are not read", f"delete `&{event.anchor}`"
    if event.tag is not None:
        return f"tags (`{_short_tag(event.tag)}`) are not read", "write the plain value"
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


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"the single value {value!r}"


def _read_text(path: Path, origin: Origin, faults: FaultList) -> str | None:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            faults.add(
                f"the file has {path.stat().st_size:,} bytes; a recipe has at most "
                f"{MAX_FILE_BYTES:,}",
                origin,
                fix="check that this is a recipe and not data",
            )
            return None
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        faults.add(
            f"cannot read the file: {error.strerror}", origin, fix="check the path and its rights"
        )
    except UnicodeDecodeError as error:
        faults.add(f"the file is not UTF-8 (byte {error.start})", origin, fix="save it as UTF-8")
    return None


def _make_dumper() -> Any:
    """PyYAML's dumper, with quotes around text that YAML 1.2 would read as something else."""

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def represent_text(dumper: Any, text: str) -> Any:
        style = None if isinstance(resolve_scalar(text), str) else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, represent_text)
    return Dumper
