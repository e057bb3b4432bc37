"""The resolved recipe: every setting with its value, and the place that set it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_sft.recipe.fields import Section
from lora_sft.recipe.locations import make_absolute
from lora_sft.recipe.schema import (
    AdapterSection,
    EvaluateSection,
    ExportSection,
    ModelSection,
    TokenizerSection,
)
from lora_sft.recipe.sections.data import DataSection
from lora_sft.recipe.sections.settings import section_fields
from lora_sft.recipe.sections.task import TaskSection
from lora_sft.recipe.shipped import PREFIX, find_shipped_policy
from lora_sft.recipe.written import Origin, join
from lora_sft.recipe.yaml_reader import write_yaml, write_yaml_inline
from lora_sft.tasks.kind import TaskKind
from lora_sft.tasks.table import KINDS

DEFAULT = "default"
TASK_DEFAULT = "task"


@dataclass(frozen=True, eq=False)
class Recipe:
    """The complete settings of one run. `read_recipe` makes it, and nothing changes it afterwards.

    Two recipes are equal if they describe the same run, even if they were read from different
    files.

    Attributes:
        quantization: Settings of BitsAndBytesConfig; a preset is expanded. None: no quantization.
        adapter: Its `lora` holds the LoraConfig settings that we or the user set. PEFT's own
            defaults are not included.
        train: The settings of SFTConfig and our additions that we or the user set. TRL's own
            defaults are not included.
        output_dir: The run's folder, relative to the current directory.
        source: The recipe file.
        source_label: The name of the recipe file in messages.
        deepspeed_location: The path of the DeepSpeed file, or None without one.
        quantization_as_written: The preset's name or the settings, as `lora-sft show` prints them.
        places: The origin of every written value, by dotted path.
        task: The task, or None for chats.
        task_defaults: The dotted paths whose default comes from the kind of task.
    """

    model: ModelSection
    tokenizer: TokenizerSection
    quantization: dict[str, Any] | None
    adapter: AdapterSection
    data: DataSection
    train: dict[str, Any]
    evaluate: EvaluateSection
    export: ExportSection
    output_dir: str
    source: Path
    source_label: str
    deepspeed_location: str | None
    quantization_as_written: str | dict[str, Any] | None
    places: Mapping[str, Origin] = dataclasses.field(repr=False)
    task: TaskSection | None = None
    task_defaults: frozenset[str] = frozenset()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Recipe):
            return NotImplemented
        return self.to_dict(absolute_paths=True) == other.to_dict(absolute_paths=True)

    __hash__ = None  # type: ignore[assignment]

    @property
    def kind(self) -> TaskKind | None:
        """The kind of task, or None for chats."""
        return KINDS.get(self.task.kind) if self.task is not None else None

    def is_written(self, dotted: str) -> bool:
        """Return whether a file or the command line sets a field, such as `train.max_steps`."""
        return dotted in self.places

    def where(self, dotted: str) -> str:
        """Return the place of a setting for an error, such as `my.yaml:14  train.learning_rate`.

        For a default, it is the place of the nearest written section. List items may also be given
        as `adapter.target_modules[1]`.
        """
        path = dotted.replace("[", ".").replace("]", "")
        while path and path not in self.places:
            path = path.rpartition(".")[0]
        place = str(self.places[path]) if path else self.source_label
        return f"{place}  {dotted}"

    @property
    def origins(self) -> dict[str, str]:
        """Return the origin of each resolved value: `file:line`, `command line` or `default`."""
        return {dotted: self._origin_of(dotted) for dotted in _list_leaf_paths(self.to_dict())}

    def to_dict(self, *, absolute_paths: bool = False) -> dict[str, Any]:
        """Return the resolved recipe as plain data that `read_recipe` reads as an equal recipe.

        Without `absolute_paths`, the data must be read from the same folder.
        """
        return {
            "model": _section_to_dict(self.model, absolute_paths),
            "tokenizer": _section_to_dict(self.tokenizer, absolute_paths),
            "quantization": self.quantization_as_written,
            "adapter": {
                **_section_to_dict(self.adapter, absolute_paths),
                **self.adapter.lora,
            },
            "task": None if self.task is None else _section_to_dict(self.task, absolute_paths),
            "data": _section_to_dict(self.data, absolute_paths),
            "train": self._train_to_dict(absolute_paths),
            "evaluate": _section_to_dict(self.evaluate, absolute_paths),
            "export": _section_to_dict(self.export, absolute_paths),
            "output_dir": str(make_absolute(self.output_dir))
            if absolute_paths
            else self.output_dir,
        }

    def resolved_text(self) -> str:
        """Return the resolved recipe as YAML with absolute local paths, for a run directory."""
        return write_yaml(self.to_dict(absolute_paths=True))

    def annotated_text(self) -> str:
        """Return the resolved recipe as YAML with the origin of each value beside it."""
        lines = list(_annotate(self.to_dict(), self.origins))
        width = max(len(line) for line, _origin in lines)
        return "\n".join(
            f"{line:<{width}}  # {origin}" if origin else line for line, origin in lines
        )

    def _train_to_dict(self, absolute_paths: bool) -> dict[str, Any]:
        if not absolute_paths or not isinstance(self.train.get("deepspeed"), str):
            return dict(self.train)
        written = self.train["deepspeed"]
        if find_shipped_policy(written) is not None:
            return dict(self.train)  # the name of a shipped policy works from any folder
        return {
            **self.train,
            "deepspeed": _make_portable(written, self.deepspeed_location or written),
        }

    def _origin_of(self, dotted: str) -> str:
        if dotted in self.places:
            return str(self.places[dotted])
        section = dotted.rpartition(".")[0]
        if dotted in ("model.model_name_or_path", "task.kind") and section in self.places:
            return str(self.places[section])
        return TASK_DEFAULT if dotted in self.task_defaults else DEFAULT


def _section_to_dict(section: Section, absolute_paths: bool) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for name, field in section_fields(type(section)).items():
        value = getattr(section, name)
        if absolute_paths and field.path_kind and value is not None:
            value = _make_portable(value, getattr(section, field.located_as))
        data[name] = _to_plain(value, absolute_paths)
    return data


def _to_plain(value: Any, absolute_paths: bool) -> Any:
    if isinstance(value, Section):
        return _section_to_dict(value, absolute_paths)
    if isinstance(value, list):
        return [_to_plain(item, absolute_paths) for item in value]
    return value


def _make_portable(written: str, location: str) -> str:
    """Return a path that works from any folder. Paths of shipped files keep their prefix."""
    return written if written.startswith(PREFIX) or not location else location


def _annotate(
    data: Any, origins: Mapping[str, str], prefix: str = "", indent: str = ""
) -> Iterator[tuple[str, str]]:
    """Yield the lines of YAML in block style, each with the origin of its value or ""."""
    for name, value in data.items() if isinstance(data, dict) else enumerate(data):
        dotted = join(prefix, name)
        bullet = f"{name}:" if isinstance(data, dict) else "-"
        if dotted in origins:
            yield f"{indent}{bullet} {write_yaml_inline(value)}", origins[dotted]
        else:
            yield f"{indent}{bullet}", ""
            yield from _annotate(value, origins, dotted, indent + "  ")


def _list_leaf_paths(data: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every value. A list without mappings counts as one value."""
    if isinstance(data, dict) and data:
        for name, value in data.items():
            yield from _list_leaf_paths(value, join(prefix, name))
    elif isinstance(data, list) and any(isinstance(item, dict) for item in data):
        for index, item in enumerate(data):
            yield from _list_leaf_paths(item, join(prefix, index))
    else:
        yield prefix
