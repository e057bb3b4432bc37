"""Write `recipes/REFERENCE.md`, and the table of shipped recipes in `recipes/README.md`.

    python tools/write_recipe_reference.py           # write both
    python tools/write_recipe_reference.py --check   # exit 1 and name the file that differs

Run it after a change of the schema, of the shelf or of the snapshot of library fields. Names,
types, defaults and fixes come from `lora_sft.recipe`, so that the reference cannot say what the
reader does not do; only the reasons are written here, and one that is missing or left over stops
the tool. What this version still refuses is found by asking it.
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
    section_fields,
    train_fields,
)
from lora_sft.recipe.yaml_reader import write_yaml_inline

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "recipes" / "REFERENCE.md"
SHELF = ROOT / "recipes" / "README.md"
SHELF_BEGINS = "<!-- made by tools/write_recipe_reference.py -->"
SHELF_ENDS = "<!-- end of what was made -->"
LINE_LENGTH = 100
UNBROKEN: Any = {"break_long_words": False, "break_on_hyphens": False}
NOT_YET = ("comes in a later version", "is not available yet")

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
    "r": "more room than 8; its memory is small beside the base's either way",
    "lora_alpha": "twice the rank, so that the update is scaled by 2",
    "lora_dropout": "the same; written down so that an upgrade cannot move it",
    "target_modules": "every linear layer but the head (QLoRA, section 4: it takes all of them to "
    "match full fine-tuning); PEFT's own choice depends on the architecture and is often the "
    "attention's queries and values alone",
}
TRAIN_REASONS = {
    "learning_rate": "TRL's is a value for full fine-tuning; an adapter wants about ten times that",
    "lr_scheduler_type": "the last steps are small ones, whatever the length of the run",
    "warmup_steps": "below 1 it is a share of the run: 3 % of the steps; a fresh optimizer state "
    "makes its first steps too large",
    "num_train_epochs": "three passes over instruction data often overfit; more than one is for "
    "the recipe to ask for",
    "per_device_train_batch_size": "the smallest that fits wherever the model fits; raising it "
    "changes the speed and not the batch, because `global_batch_size` stays",
    "global_batch_size": "the result depends on it, so it is stated; TRL's batch grows with the "
    "number of GPUs",
    "optim": "decided on the machine: `paged_adamw_8bit` for a quantized base on CUDA, whose "
    "point is memory, else `adamw_torch_fused`",
    "seed": "the same; written down so that an upgrade cannot move it",
    "early_stopping_patience": "off; the library has it as a callback, which no recipe could name",
}
# What `train.trainer.make_sft_config` decides where the recipe is silent; a test compares.
RUN_DECIDES = {
    "activation_checkpointing": "on: one more forward pass for far less memory; `false` where "
    "memory is no concern",
    "bf16": "on where `model.dtype` is `bfloat16`, off under `train.fp16: true`",
    "ddp_find_unused_parameters": "`false`: every adapter weight takes part in every step",
    "gradient_accumulation_steps": "`global_batch_size` / (`per_device_train_batch_size` x "
    "processes); one that does not divide is refused",
    "logging_nan_inf_filter": "`false`: a loss that is no number stops the run, it is not "
    "smoothed over",
    "use_cpu": "where no GPU is found",
}
PRESET_REASONS = {
    "load_in_4bit": "what the preset is for",
    "load_in_8bit": "what the preset is for",
    "bnb_4bit_quant_type": "made for weights that are normally distributed (QLoRA, section 3)",
    "bnb_4bit_use_double_quant": "quantizes the scales too: 0.37 bits a weight less (QLoRA, "
    "section 3)",
}
# A value to show the fix with, where the library's own default would not do.
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
# Values that no list of choices holds, and that the recipe knows before the run can do them.
ASKED_FOR = (
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
    """The whole of `recipes/REFERENCE.md`."""
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
        "Every setting of a recipe. Made by `tools/write_recipe_reference.py` from the schema that "
        "reads recipes; edits here are lost. The libraries' settings are those of "
        f"{versions}.",
        "`lora-sft show RECIPE` prints a recipe with every default filled in and where each value "
        "comes from; `lora-sft show --schema` prints the JSON Schema, for completion in editors. "
        "An unknown name is an error that says the nearest real one, and a name of another tool or "
        "of an older release one that gives the line to write instead.",
    )


def _describe_top_level() -> str:
    described = recipe_json_schema()["properties"]
    rows = [
        ("`extends`", "text", "`null`", described["extends"]["description"]),
        ("`output_dir`", "text", "`runs/NAME`", described["output_dir"]["description"]),
    ]
    names = (*SECTIONS, "quantization", "adapter", "train")
    links = ", ".join(f"[{name}](#{name})" for name in names)
    text = f"The sections {links}, and beside them (NAME is the recipe's file name):"
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
    compute = "four-bit weights are multiplied in this type; float32 is many times slower"
    rows.append(("nf4", "`bnb_4bit_compute_dtype`", "`model.dtype`", "`float32`", compute))
    rows.sort(key=lambda row: list(QUANTIZATION_PRESETS).index(row[0]))
    return _paragraphs(
        "## quantization",
        "`null` (the weights stay as stored), a preset, or a mapping of BitsAndBytesConfig "
        "settings. `bnb_4bit_compute_dtype` follows `model.dtype` in a mapping too, wherever it is "
        "left out. A base that is stored quantized takes `null`.",
        _table(("preset", "sets", "to", "library's default", "why"), rows),
    )


def _describe_adapter() -> str:
    _check_reasons(ADAPTER_REASONS, ADAPTER_DEFAULTS, "adapter")
    names = ", ".join(f"`{name}`" for name in sorted(ADAPTER_SET_BY_RUN))
    return _paragraphs(
        "## adapter",
        "Settings of PEFT's LoraConfig, under their own names; and `init_from`, which is ours.",
        _own_table(section_fields(AdapterSection)),
        "### adapter: our defaults",
        _compare_defaults(ADAPTER_DEFAULTS, library_fields("LoraConfig"), ADAPTER_REASONS),
        f"Set by the run, and refused in a recipe: {names}.",
    )


def _describe_train() -> str:
    fields = train_fields()
    return _paragraphs(
        "## train",
        "Settings of TRL's SFTConfig, under their own names, and two of ours:",
        _own_table({name: fields[name] for name in TRAIN_ADDITIONS}),
        "`gradient_checkpointing` is read as the older name of `activation_checkpointing`.",
        "### train: our defaults",
        _train_defaults(),
        "`data.max_length` has no default: TRL's "
        f"{library_fields('SFTConfig')['max_length'].default} would cut rows unasked.",
        "### train: decided by the run where the recipe is silent",
        _run_decides(),
        "### train: set elsewhere",
        "SFTConfig has these, but another section owns them or the run sets them. Under `train` "
        "they are errors with this fix:",
        _set_elsewhere(),
    )


def _train_defaults() -> str:
    _check_reasons(TRAIN_REASONS, TRAIN_DEFAULTS, "train")
    return _compare_defaults(TRAIN_DEFAULTS, library_fields("SFTConfig"), TRAIN_REASONS)


def _run_decides() -> str:
    library = library_fields("SFTConfig")
    rows = [(f"`{name}`", what, _show(library[name].default)) for name, what in RUN_DECIDES.items()]
    return _table(("setting", "by default", "library's default"), rows)


def _set_elsewhere() -> str:
    library = library_fields("SFTConfig")
    rows = []
    for name in TRAIN_OWNED_ELSEWHERE:
        value = SHOWN_VALUES.get(name, library[name].default)
        advice = find_advice("train", name, value)
        assert advice is not None, name
        assert value is not None, f"SHOWN_VALUES lacks {name}"
        rows.append((_line(name, value), _fix(advice.fix)))
    return _table(("under train", "instead"), rows)


def _list_refused_values() -> str:
    rows = [(_override(asked), _fix(fix)) for asked, fix in find_refused_values()]
    return _paragraphs(
        "## Known, and not in this version",
        "The schema has these already, so that recipes need not change when they come. Until then "
        "each is refused, and nothing is left out in silence."
        if rows
        else "Nothing: every value that the schema takes works.",
        _table(("setting", "instead"), rows) if rows else "",
    )


def _list_library_names() -> str:
    groups = {
        "train": set(train_fields()) - set(TRAIN_ADDITIONS),
        "adapter": set(adapter_fields()) - set(section_fields(AdapterSection)),
        "quantization": set(quantization_fields()),
    }
    parts = ["## All library settings", "The libraries' own documentation says what they do."]
    for section, names in groups.items():
        listed = ", ".join(f"`{name}`" for name in sorted(names))
        parts += [f"### {section}: {len(names)} settings", listed]
    return _paragraphs(*parts)


# --- what this version refuses --------------------------------------------------------------------


def find_refused_values() -> list[tuple[str, str]]:
    """Every `path=value` that the schema takes and this version says it cannot do yet, and why."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "smallest.yaml"
        recipe.write_text(SMALLEST_RECIPE, encoding="utf-8")
        answers = [(asked, _ask(recipe, asked)) for asked in (*_all_choices(), *ASKED_FOR)]
    return [(asked, fix) for asked, fix in answers if fix is not None]


def _all_choices() -> Iterator[str]:
    places: dict[str, type[Section]] = {**SECTIONS, "data.datasets.0": DatasetSection}
    for place, kind in places.items():
        for name, field in section_fields(kind).items():
            yield from (f"{place}.{name}={choice}" for choice in field.choices)


def _ask(recipe: Path, override: str) -> str | None:
    """The fix, if reading the recipe says that this is not there yet."""
    try:
        read_recipe(recipe, [override])
    except RecipeError as error:
        faults: Sequence[Fault] = error.faults
    else:
        return None
    return next(
        (fault.fix for fault in faults if any(words in fault.what for words in NOT_YET)), None
    )


# --- the shelf ------------------------------------------------------------------------------------


def make_shelf(text: str) -> str:
    """`recipes/README.md` with its table of recipes made anew."""
    before, begins, rest = text.partition(SHELF_BEGINS)
    _old, ends, after = rest.partition(SHELF_ENDS)
    if not (begins and ends):
        raise SystemExit(f"{SHELF} lacks the lines {SHELF_BEGINS} and {SHELF_ENDS}")
    return f"{before}{begins}\n\n{_shelf_table()}\n\n{ends}{after}"


def _shelf_table() -> str:
    rows = [_shelf_row(shipped) for shipped in list_recipes()]
    return _table(("name", "what", "model", "method", "data", "hardware"), rows)


def _shelf_row(shipped: ShippedRecipe) -> tuple[str, ...]:
    datasets = read_recipe(shipped.path).data.datasets
    data = ", ".join(f"`{dataset.path}`" for dataset in datasets)
    link = f"[{shipped.name}]({shipped.name}.yaml)"
    return link, shipped.title, f"`{shipped.model}`", shipped.method, data, shipped.hardware


# --- Markdown -------------------------------------------------------------------------------------

OWN_COLUMNS = ("setting", "takes", "default", "meaning")


def _paragraphs(*parts: str) -> str:
    """Blocks with a blank line between; prose is wrapped, headings and tables are not."""
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
    return _table(("setting", "our default", "library's default", "why"), rows)


def _compare(name: str, value: Any, library: Mapping[str, Field]) -> tuple[str, str, str]:
    theirs = _show(library[name].default) if name in library else "not a setting there"
    return f"`{name}`", _show(value), theirs


def _describe_type(field: Field) -> str:
    """What a setting takes, in words: `auto`, `drop`, a whole number (at least 1), `null`."""
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
    """`write data.max_length: 1024` with the line to write set as code."""
    verb, _, line = text.partition(" ")
    return f"`{line}`" if verb == "write" else text


def _first_line(kind: type[Section]) -> str:
    return (kind.__doc__ or "").splitlines()[0]


def _check_reasons(reasons: Mapping[str, str], names: Iterable[str], section: str) -> None:
    """A default without a reason, or a reason without a default, is a mistake of this file."""
    plain = {name.strip("`") for name in names}
    if plain != set(reasons):
        differing = ", ".join(sorted(plain ^ set(reasons)))
        raise SystemExit(f"the reasons of {section} do not fit its defaults: {differing}")


# --- the command ----------------------------------------------------------------------------------


def make_files() -> dict[Path, str]:
    """Every file this tool makes, as it should be."""
    return {REFERENCE: make_reference(), SHELF: make_shelf(SHELF.read_text(encoding="utf-8"))}


def find_stale_files() -> list[Path]:
    """The files that are not as they should be."""
    return [
        path
        for path, text in make_files().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def main() -> int:
    """Write the files, or compare them with what would be written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
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
