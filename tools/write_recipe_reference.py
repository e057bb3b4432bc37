"""Write `recipes/REFERENCE.md`, and the table of shipped recipes in `recipes/README.md`.

    python tools/write_recipe_reference.py           # write both
    python tools/write_recipe_reference.py --check   # exit 1 and name the file that differs

Run it after a change of the schema, the shipped recipes or the snapshot of library fields. Names,
types, defaults and fixes come from `lora_sft.recipe`, so the reference cannot contradict the
reader. Only the reasons of defaults are written in this file. If a default has no reason, or a
reason has no default, the tool stops. To find the values that this version does not support, the
tool reads a recipe with each of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_sft.errors import Fault, RecipeError
from lora_sft.recipe import (
    DatasetSection,
    SplitSection,
    read_recipe,
    recipe_json_schema,
)
from lora_sft.recipe.catalogue import ShippedRecipe, list_recipes
from lora_sft.recipe.fields import Field, Section
from lora_sft.recipe.library_fields import library_fields, read_snapshot
from lora_sft.recipe.other_names import (
    ADAPTER_SET_BY_RUN,
    TRAIN_OWNED_ELSEWHERE,
    find_advice,
)
from lora_sft.recipe.schema import (
    ADAPTER_DEFAULTS,
    QUANTIZATION_PRESETS,
    SECTIONS,
    TRAIN_ADDITIONS,
    TRAIN_DEFAULTS,
    AdapterSection,
    adapter_fields,
    quantization_fields,
    train_fields,
)
from lora_sft.recipe.sections.settings import section_fields
from lora_sft.recipe.yaml_reader import write_yaml_inline

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "recipes" / "REFERENCE.md"
RECIPES_README = ROOT / "recipes" / "README.md"
TABLE_BEGINS = "<!-- made by tools/write_recipe_reference.py -->"
TABLE_ENDS = "<!-- end of the generated part -->"
LINE_LENGTH = 100
UNBROKEN: Any = {"break_long_words": False, "break_on_hyphens": False}
NOT_YET = "is not available in this version"

SMALLEST_RECIPE = "model: some/model\ndata: {datasets: [{path: some/data}], max_length: 128}\n"

WORDS = {
    "boolean": "`true` or `false`",
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "array": "a list",
    "object": "a mapping",
    "null": "`null`",
}

ADAPTER_REASONS = {
    "r": "more capacity than 8; with both, the adapter is small compared with the base",
    "lora_alpha": "twice the rank, so that the update is scaled by 2",
    "lora_dropout": "the same value; it is fixed here so that an upgrade cannot change it",
    "target_modules": "every linear layer except the head: adapters on all of them are needed to "
    "match full fine-tuning (QLoRA, section 4). PEFT's own choice depends on the architecture "
    "and is often only the queries and values of the attention",
}
TRAIN_REASONS = {
    "learning_rate": "TRL's value is for full fine-tuning; an adapter needs about ten times more",
    "lr_scheduler_type": "the last steps of the run are small, however long the run is",
    "warmup_steps": "a value below 1 is a share of the run, here 3 % of the steps; without warm-up "
    "the first steps are too large, because the optimizer state is new",
    "num_train_epochs": "three epochs of instruction data often overfit, so more than one epoch "
    "must be set in the recipe",
    "per_device_train_batch_size": "it fits on every device on which the model fits; a larger "
    "value changes only the speed, because `global_batch_size` stays the same",
    "global_batch_size": "the result of training depends on it; TRL's batch grows with the number "
    "of GPUs",
    "optim": "chosen on the machine: `paged_adamw_8bit` for a quantized base on CUDA, to save "
    "memory, else `adamw_torch_fused`",
    "seed": "the same value; it is fixed here so that an upgrade cannot change it",
    "early_stopping_patience": "off; in the library it is a callback, which a recipe cannot name",
}
# The settings that `train.trl.sft_arguments.make_sft_config` chooses if the recipe does not set
# them. A test compares.
RUN_DECIDES = {
    "activation_checkpointing": "`true`: it needs much less memory and one more forward pass; set "
    "`false` if memory is large enough",
    "bf16": "`true` if `model.dtype` is `bfloat16` and `train.fp16` is not `true`",
    "ddp_find_unused_parameters": "`false`: every adapter weight takes part in every step",
    "gradient_accumulation_steps": "`global_batch_size` / (`per_device_train_batch_size` x number "
    "of processes); if this is not a whole number, the recipe is refused",
    "logging_nan_inf_filter": "`false`: a loss that is NaN or infinite stops the run and is not "
    "hidden",
    "use_cpu": "`true` if no GPU is found",
}
PRESET_REASONS = {
    "load_in_4bit": "the purpose of the preset",
    "load_in_8bit": "the purpose of the preset",
    "bnb_4bit_quant_type": "designed for weights with a normal distribution (QLoRA, section 3)",
    "bnb_4bit_use_double_quant": "quantizes the scales too, which saves 0.37 bits per weight "
    "(QLoRA, section 3)",
}
# The value with which a fix is shown, if the library's default does not show it well.
SHOWN_VALUES: dict[str, Any] = {
    "packing": True,
    "eval_packing": True,
    "padding_free": True,
    "assistant_only_loss": True,
    "completion_only_loss": True,
    "chat_template_path": "mine.jinja",
    "eos_token": "<|im_end|>",
    "pad_token": "<|pad|>",
    "dataset_text_field": "body",
    "dataset_kwargs": {},
    "dataset_num_proc": 8,
    "shuffle_dataset": True,
    "output_dir": "runs/mine",
    "model_init_kwargs": {"dtype": "float32"},
    "trust_remote_code": True,
    "hub_token": "...",
    "local_rank": 0,
    "do_train": True,
    "do_predict": True,
    "resume_from_checkpoint": "runs/mine/checkpoints/checkpoint-100",
}
# More values to try, which are in no list of choices. The schema accepts them, and this version
# may refuse them.
MORE_VALUES = (
    'data.template_date="2026-01-31"',
    "tokenizer.new_tokens=[<tool>]",
    "export.push_to_hub=me/mine",
    "train.push_to_hub=true",
    "train.per_device_train_batch_size=auto",
    "train.activation_checkpointing=auto",
    "train.activation_checkpointing=8",
    *(f"train.deepspeed=zero{stage}" for stage in ("0", "1", "2", "2_offload", "3", "3_offload")),
)


# --- the page -------------------------------------------------------------------------------------


def make_reference() -> str:
    """Return the whole text of `recipes/REFERENCE.md`."""
    parts = [
        _introduce(),
        _describe_top_level(),
        *(_describe_section(name, kind) for name, kind in SECTIONS.items()),
        _describe_quantization(),
        _describe_adapter(),
        _describe_train(),
        _list_refused_values(),
        _list_library_names(),
    ]
    return "\n\n".join(parts) + "\n"


def _introduce() -> str:
    versions = ", ".join(f"{name} {number}" for name, number in read_snapshot()["versions"].items())
    return _paragraphs(
        "# Recipe reference",
        "This page lists every setting of a recipe. `tools/write_recipe_reference.py` makes it "
        "from the recipe's schema, so do not edit it. The libraries' settings are those of "
        f"{versions}.",
        "`lora-sft show RECIPE` prints a recipe with all defaults and the origin of each value. "
        "For completion in editors, `lora-sft show --schema` prints the JSON Schema.",
        "An unknown name is an error, and the message gives the most similar setting. For a name "
        "of another tool or of an older release, the message gives the line to write instead.",
    )


def _describe_top_level() -> str:
    described = recipe_json_schema()["properties"]
    rows = [
        ("`extends`", "text", "`null`", described["extends"]["description"]),
        ("`output_dir`", "text", "`runs/NAME`", described["output_dir"]["description"]),
    ]
    names = (*SECTIONS, "quantization", "adapter", "train")
    links = ", ".join(f"[{name}](#{name})" for name in names)
    text = (
        f"The sections are {links}. A recipe also has these two settings (NAME is the recipe's "
        "file name without its ending):"
    )
    return _paragraphs("## Top level", text, _table(OWN_COLUMNS, rows))


def _describe_section(name: str, kind: type[Section]) -> str:
    parts = [f"## {name}", _first_line(kind), _own_table(section_fields(kind))]
    if name == "data":
        for title, part in (("datasets", DatasetSection), ("validation, test", SplitSection)):
            parts += [f"### data: {title}", _first_line(part), _own_table(section_fields(part))]
    return _paragraphs(*parts)


def _describe_quantization() -> str:
    defaults = quantization_fields()
    rows = [
        (preset, *_compare(name, value, defaults), PRESET_REASONS[name])
        for preset, settings in QUANTIZATION_PRESETS.items()
        for name, value in settings.items()
    ]
    _check_reasons(PRESET_REASONS, {name for _, name, *_ in rows}, "quantization")
    compute = "matrix products with 4-bit weights use this type; float32 is many times slower"
    rows.append(("nf4", "`bnb_4bit_compute_dtype`", "`model.dtype`", "`float32`", compute))
    rows.sort(key=lambda row: list(QUANTIZATION_PRESETS).index(row[0]))
    return _paragraphs(
        "## quantization",
        "The value is `null` (the weights stay as they are stored), a preset, or a mapping of "
        "BitsAndBytesConfig settings. In a mapping too, the default of `bnb_4bit_compute_dtype` "
        "is `model.dtype`. For a base that is stored quantized, write `null`.",
        _table(("preset", "setting", "value", "library's default", "reason"), rows),
    )


def _describe_adapter() -> str:
    _check_reasons(ADAPTER_REASONS, ADAPTER_DEFAULTS, "adapter")
    names = ", ".join(f"`{name}`" for name in sorted(ADAPTER_SET_BY_RUN))
    return _paragraphs(
        "## adapter",
        "This section has the settings of PEFT's LoraConfig, and one additional setting:",
        _own_table(section_fields(AdapterSection)),
        "### adapter: our defaults",
        _compare_defaults(ADAPTER_DEFAULTS, library_fields("LoraConfig"), ADAPTER_REASONS),
        f"The run sets these settings itself, so a recipe must not contain them: {names}.",
    )


def _describe_train() -> str:
    fields = train_fields()
    return _paragraphs(
        "## train",
        "This section has the settings of TRL's SFTConfig, and two additional settings:",
        _own_table({name: fields[name] for name in TRAIN_ADDITIONS}),
        "`gradient_checkpointing` is accepted as the older name of `activation_checkpointing`.",
        "### train: our defaults",
        _train_defaults(),
        "`data.max_length` has no default: TRL's default, "
        f"{library_fields('SFTConfig')['max_length'].default}, would cut rows without a message.",
        "### train: chosen by the run",
        "If the recipe does not set these settings, the run chooses their values:",
        _run_decides(),
        "### train: set elsewhere",
        "SFTConfig has these settings too, but another section owns them or the run sets them. "
        "Under `train` each of them is an error with this fix:",
        _set_elsewhere(),
    )


def _train_defaults() -> str:
    _check_reasons(TRAIN_REASONS, TRAIN_DEFAULTS, "train")
    return _compare_defaults(TRAIN_DEFAULTS, library_fields("SFTConfig"), TRAIN_REASONS)


def _run_decides() -> str:
    library = library_fields("SFTConfig")
    rows = [(f"`{name}`", what, _show(library[name].default)) for name, what in RUN_DECIDES.items()]
    return _table(("setting", "value", "library's default"), rows)


def _set_elsewhere() -> str:
    library = library_fields("SFTConfig")
    rows = []
    for name in TRAIN_OWNED_ELSEWHERE:
        value = SHOWN_VALUES.get(name, library[name].default)
        advice = find_advice("train", name, value)
        assert advice is not None, name
        assert value is not None, f"SHOWN_VALUES lacks {name}"
        rows.append((_line(name, value), _fix(advice.fix)))
    return _table(("under train", "fix"), rows)


def _list_refused_values() -> str:
    rows = [(_override(value), _fix(fix)) for value, fix in find_refused_values()]
    return _paragraphs(
        "## Not available in this version",
        "The schema already has these values, but this version refuses them. No setting is ignored "
        "silently."
        if rows
        else "This version supports every value of the schema.",
        _table(("setting", "fix"), rows) if rows else "",
    )


def _list_library_names() -> str:
    groups = {
        "train": set(train_fields()) - set(TRAIN_ADDITIONS),
        "adapter": set(adapter_fields()) - set(section_fields(AdapterSection)),
        "quantization": set(quantization_fields()),
    }
    parts = ["## All library settings", "The libraries' own documentation describes them."]
    for section, names in groups.items():
        listed = ", ".join(f"`{name}`" for name in sorted(names))
        parts += [f"### {section}: {len(names)} settings", listed]
    return _paragraphs(*parts)


# --- values that this version refuses -------------------------------------------------------------


def find_refused_values() -> list[tuple[str, str]]:
    """Return every `path=value` that the schema has and this version refuses, with its fix."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "smallest.yaml"
        recipe.write_text(SMALLEST_RECIPE, encoding="utf-8")
        values = (*_all_choices(), *MORE_VALUES)
        fixes = [(value, _find_refusal(recipe, value)) for value in values]
    return [(value, fix) for value, fix in fixes if fix is not None]


def _all_choices() -> Iterator[str]:
    places: dict[str, type[Section]] = {**SECTIONS, "data.datasets.0": DatasetSection}
    for place, kind in places.items():
        for name, field in section_fields(kind).items():
            yield from (f"{place}.{name}={choice}" for choice in field.choices)


def _find_refusal(recipe: Path, override: str) -> str | None:
    """Return the fix if this version refuses the override as not available, else None."""
    try:
        read_recipe(recipe, [override])
    except RecipeError as error:
        faults: Sequence[Fault] = error.faults
    else:
        return None
    return next((fault.fix for fault in faults if NOT_YET in fault.what), None)


# --- the table of recipes -------------------------------------------------------------------------


def make_readme(text: str) -> str:
    """Return the text of `recipes/README.md` with its table of recipes up to date."""
    before, begins, rest = text.partition(TABLE_BEGINS)
    _old, ends, after = rest.partition(TABLE_ENDS)
    if not (begins and ends):
        raise SystemExit(f"{RECIPES_README} lacks the lines {TABLE_BEGINS} and {TABLE_ENDS}")
    return f"{before}{begins}\n\n{_make_recipe_table()}\n\n{ends}{after}"


def _make_recipe_table() -> str:
    rows = [_make_recipe_row(shipped) for shipped in list_recipes()]
    return _table(("name", "what", "model", "method", "data", "hardware"), rows)


def _make_recipe_row(shipped: ShippedRecipe) -> tuple[str, ...]:
    datasets = read_recipe(shipped.path).data.datasets
    data = ", ".join(f"`{dataset.path}`" for dataset in datasets)
    link = f"[{shipped.name}]({shipped.name}.yaml)"
    return link, shipped.title, f"`{shipped.model}`", shipped.method, data, shipped.hardware


# --- Markdown -------------------------------------------------------------------------------------

OWN_COLUMNS = ("setting", "takes", "default", "meaning")


def _paragraphs(*parts: str) -> str:
    """Return the blocks with empty lines between them. Only prose is wrapped."""
    return "\n\n".join(
        part if part.startswith(("#", "|")) else textwrap.fill(part, LINE_LENGTH, **UNBROKEN)
        for part in parts
        if part
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _own_table(fields: Mapping[str, Field]) -> str:
    rows = []
    for name, field in fields.items():
        default = "**required**" if field.is_required else _show(field.default)
        rows.append((f"`{name}`", _describe_type(field), default, field.help))
    return _table(OWN_COLUMNS, rows)


def _compare_defaults(
    ours: Mapping[str, Any], library: Mapping[str, Field], reasons: Mapping[str, str]
) -> str:
    rows = [(*_compare(name, value, library), reasons[name]) for name, value in ours.items()]
    return _table(("setting", "our default", "library's default", "reason"), rows)


def _compare(name: str, value: Any, library: Mapping[str, Field]) -> tuple[str, str, str]:
    theirs = _show(library[name].default) if name in library else "not a setting there"
    return f"`{name}`", _show(value), theirs


def _describe_type(field: Field) -> str:
    """Return the accepted values in words: `auto`, `drop`, a whole number at least 1, `null`."""
    words = [f"`{choice}`" for choice in field.choices]
    words += [
        _describe_json_type(name, field) for name in field.types if not _is_listed(name, field)
    ]
    return ", ".join(words)


def _is_listed(json_type: str, field: Field) -> bool:
    return json_type == "string" and bool(field.choices)


def _describe_json_type(name: str, field: Field) -> str:
    if name in ("array", "object") and field.section is not None:
        anchor = "#data-datasets" if field.section is DatasetSection else "#data-validation-test"
        return f"[{WORDS[name]}]({anchor})"
    bounds = {"above": field.above, "at least": field.at_least, "below": field.below}
    said = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)
    return f"{WORDS[name]} {said}" if said and name in ("integer", "number") else WORDS[name]


def _show(value: Any) -> str:
    return f"`{write_yaml_inline(value)}`"


def _line(name: str, value: Any) -> str:
    return f"`{name}: {write_yaml_inline(value)}`"


def _override(text: str) -> str:
    path, _, value = text.partition("=")
    return f"`{path}: {value}`"


def _fix(text: str) -> str:
    """Return a fix such as `write data.max_length: 1024`, with the line to write as code."""
    verb, _, line = text.partition(" ")
    return f"`{line}`" if verb == "write" else text


def _first_line(kind: type[Section]) -> str:
    return (kind.__doc__ or "").splitlines()[0]


def _check_reasons(reasons: Mapping[str, str], names: Iterable[str], section: str) -> None:
    """Exit with a message if a default has no reason, or a reason has no default."""
    plain = {name.strip("`") for name in names}
    if plain != set(reasons):
        differing = ", ".join(sorted(plain ^ set(reasons)))
        raise SystemExit(
            f"defaults and reasons of {section} do not have the same names: {differing}"
        )


# --- the command ----------------------------------------------------------------------------------


def make_files() -> dict[Path, str]:
    """Return the correct text of every file that this tool writes."""
    return {
        REFERENCE: make_reference(),
        RECIPES_README: make_readme(RECIPES_README.read_text(encoding="utf-8")),
    }


def find_stale_files() -> list[Path]:
    """Return the files whose text is not up to date."""
    return [
        path
        for path, text in make_files().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def main() -> int:
    """Write the files, or with `--check` name the files that are not up to date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing, and exit 1 if a file is out of date"
    )
    if not parser.parse_args().check:
        for path, text in make_files().items():
            path.write_text(text, encoding="utf-8")
        return 0
    stale = find_stale_files()
    for path in stale:
        print(f"{path.relative_to(ROOT)} is out of date: run python {sys.argv[0]}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
