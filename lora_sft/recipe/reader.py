"""Read a recipe file with its overrides, and return a checked `Recipe` or raise all its faults."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_sft.recipe.composition import SHORT_FORMS, compose, expand_short_form
from lora_sft.recipe.fault_list import FaultList
from lora_sft.recipe.locations import describe_missing, locate
from lora_sft.recipe.other_names import write_line
from lora_sft.recipe.resolved import Recipe
from lora_sft.recipe.rules.table import find_rule_faults
from lora_sft.recipe.schema import (
    ADAPTER_DEFAULTS,
    QUANTIZATION_PRESETS,
    SECTIONS,
    TOP_LEVEL,
    TRAIN_DEFAULTS,
    AdapterSection,
    adapter_fields,
    quantization_fields,
    train_fields,
)
from lora_sft.recipe.section_builder import SectionBuilder
from lora_sft.recipe.shipped import find_shipped_policy, list_shipped_policies
from lora_sft.recipe.written import Written
from lora_sft.tasks.table import KINDS

_OLDER_TRAIN_NAMES = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, compose and check a recipe.

    Args:
        path: The recipe file.
        overrides: Settings as `section.field=value`, read by the same rules as the file. Their
            relative paths start from the current directory.

    Raises: RecipeError with every fault that was found, in the order of the file.
    """
    faults = FaultList()
    tree = compose(Path(path), overrides, faults)
    if tree is None:
        faults.raise_if_any()
        raise AssertionError("`compose` returned no recipe and reported no fault")
    recipe = _RecipeBuilder(tree, Path(path), faults).build()
    faults.settle_missing()
    find_rule_faults(recipe, faults)
    faults.raise_if_any()
    return recipe


class _RecipeBuilder:
    """Builds the recipe section by section, and reports each invalid value as a fault."""

    def __init__(self, tree: Written, source: Path, faults: FaultList) -> None:
        self._tree = tree
        self._source = source
        self._faults = faults
        self._sections = SectionBuilder(faults)

    def build(self) -> Recipe:
        self._refuse_unknown_sections()
        ours: dict[str, Any] = {
            name: self._sections.build_section(kind, self._written(name), name)
            for name, kind in SECTIONS.items()
            if name != "task" or self._written(name).value is not None
        }
        quantization, as_written = self._build_quantization(ours["model"].dtype)
        train, places = self._build_train()
        task_defaults = self._set_task_defaults(ours)
        return Recipe(
            **ours,
            quantization=quantization,
            adapter=self._build_adapter(),
            train=train,
            output_dir=self._read_output_dir(),
            source=self._source,
            source_label=str(self._source),
            deepspeed_location=self._locate_deepspeed(train.get("deepspeed")),
            quantization_as_written=as_written,
            places=places,
            task_defaults=task_defaults,
        )

    def _set_task_defaults(self, sections: dict[str, Any]) -> frozenset[str]:
        """Set the defaults that the kind of task brings, and return the paths of these settings."""
        task = sections.setdefault("task", None)
        kind = KINDS.get(task.kind) if task is not None else None
        if kind is None or task is None:
            return frozenset()
        written = dict(self._tree.places())
        defaults = {
            "data.overlong": "shorten",
            "evaluate.metrics": list(kind.list_metrics(task)),
        }
        unwritten = {path: value for path, value in defaults.items() if path not in written}
        for path, value in unwritten.items():
            section, name = path.split(".")
            sections[section] = dataclasses.replace(sections[section], **{name: value})
        return frozenset(unwritten)

    def _written(self, section: str) -> Written:
        """Return the written value of a section. A missing section is the same as null."""
        written = self._tree.value.get(section) or Written(None, self._tree.origin)
        return expand_short_form(section, written) if section in SHORT_FORMS else written

    def _refuse_unknown_sections(self) -> None:
        for name, child in self._tree.value.items():
            if name not in TOP_LEVEL:
                self._sections.refuse_key("", name, child, dict.fromkeys(TOP_LEVEL))

    def _build_quantization(
        self, model_dtype: str
    ) -> tuple[dict[str, Any] | None, str | dict[str, Any] | None]:
        """Return the BitsAndBytesConfig settings, and the form that `lora-sft show` prints."""
        written = self._written("quantization")
        if written.value is None:
            return None, None
        if isinstance(written.value, str) and written.value not in QUANTIZATION_PRESETS:
            self._refuse_preset(written)
            return None, None
        expanded = expand_short_form("quantization", written)
        settings = self._sections.build_settings(quantization_fields(), expanded, "quantization")
        if settings.get("load_in_4bit") and not settings.get("bnb_4bit_compute_dtype"):
            settings["bnb_4bit_compute_dtype"] = model_dtype
        return settings, written.value if isinstance(written.value, str) else settings

    def _refuse_preset(self, written: Written) -> None:
        preset = "int8" if "8" in written.value else "nf4"
        names = ", ".join(QUANTIZATION_PRESETS)
        self._faults.add(
            f'unknown quantization preset "{written.value}"; the presets are {names}',
            written.origin,
            "quantization",
            write_line("quantization", preset),
        )

    def _build_adapter(self) -> AdapterSection:
        written = self._written("adapter")
        is_null = "adapter" in self._tree.value and written.value is None
        if is_null or isinstance(written.value, str):
            self._refuse_adapter(written)
            written = Written(None, written.origin)
        settings = self._sections.build_settings(adapter_fields(), written, "adapter")
        outside = {
            name: settings.pop(name)
            for name in ("init_from", "init_from_location")
            if name in settings
        }
        defaults = {} if outside.get("init_from") else ADAPTER_DEFAULTS
        return AdapterSection(lora={**defaults, **settings}, **outside)

    def _refuse_adapter(self, written: Written) -> None:
        if written.value is None:
            what = "adapter cannot be null: this tool always trains an adapter, never all weights"
            fix = "delete the line for the defaults, or write adapter: {r: 16}"
        else:
            what = f'adapter must be a mapping of LoraConfig settings, not "{written.value}"'
            fix = "delete the line: an adapter is always trained"
            if written.value == "qlora":
                fix = "write quantization: nf4 instead of this line"
        self._faults.add(what, written.origin, "adapter", fix)

    def _build_train(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the train settings, and the origins of all written values.

        Older names of settings are replaced by the current ones in both.
        """
        places = dict(self._tree.places())
        settings = self._sections.build_settings(train_fields(), self._written("train"), "train")
        for older, name in _OLDER_TRAIN_NAMES.items():
            if older in settings and settings.get(name, settings[older]) == settings[older]:
                settings[name] = settings.pop(older)
                places.setdefault(f"train.{name}", places[f"train.{older}"])
        if settings.get("gradient_accumulation_steps") is None:
            settings.pop("gradient_accumulation_steps", None)
        else:
            settings.setdefault("global_batch_size", None)
        return {**TRAIN_DEFAULTS, **settings}, places

    def _locate_deepspeed(self, value: Any) -> str | None:
        """Return the path of the DeepSpeed file that `train.deepspeed` names, or None."""
        if not isinstance(value, str):
            return None
        policy = find_shipped_policy(value)
        if policy is not None:
            return str(policy)
        written = self._tree.value["train"].value["deepspeed"]
        place = locate(value, written.origin.folder, "deepspeed")
        if place is not None:
            return place
        what, fix = describe_missing(value, written.origin, "deepspeed")
        if value.isidentifier():
            what = f'no DeepSpeed policy or file "{value}"'
            fix = f"write train.deepspeed: one of {', '.join(list_shipped_policies())}"
        self._faults.add(what, written.origin, "train.deepspeed", fix)
        return None

    def _read_output_dir(self) -> str:
        written = self._written("output_dir")
        if written.value is None:
            return f"runs/{self._source.stem}"
        if isinstance(written.value, str) and written.value:
            return written.value
        fix = write_line("output_dir", f"runs/{self._source.stem}")
        self._faults.add("output_dir must be a path", written.origin, "output_dir", fix)
        return "runs"
