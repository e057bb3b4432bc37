"""Read what a run recorded about itself, and notice if the record is damaged.

A start compares itself with the manifest of the run that it continues. If the manifest is lost,
`recipe.yaml` beside it still has the recipe. Rows, batch, tokenizer and config are not compared.
"""

from __future__ import annotations

from typing import Any

from lora_sft.errors import RecipeError
from lora_sft.recipe.fault_list import FaultList
from lora_sft.recipe.yaml_reader import read_yaml_file
from lora_sft.run_directory import RunDirectory
from lora_sft.train.checkpoints.sealing import is_whole_record

# Records that an earlier version of lora-sft did not write, or not all of them.
SECTIONS = ("versions", "machine", "base", "tokenizer")


def read_run_manifest(run: RunDirectory) -> dict[str, Any] | None:
    """Return the manifest of a run; None if it is missing or damaged."""
    manifest = run.read_json(run.manifest)
    return manifest if manifest is not None and _is_whole(manifest) else None


def read_recorded_recipe(run: RunDirectory) -> dict[str, Any]:
    """Return the resolved recipe of a run; empty if neither of its two records can be read."""
    manifest = read_run_manifest(run)
    recipe: dict[str, Any] = _read_recipe_file(run) if manifest is None else manifest["recipe"]
    return recipe


def _read_recipe_file(run: RunDirectory) -> dict[str, Any]:
    faults = FaultList()
    written = read_yaml_file(run.recipe, run.recipe.name, faults)
    try:
        faults.raise_if_any()
    except RecipeError:
        return {}
    recipe = written.plain() if written is not None else {}
    return recipe if isinstance(recipe.get("train", {}), dict) else {}


def _is_whole(manifest: dict[str, Any]) -> bool:
    """Return whether every value that a start reads has its type; only the recipe must be there."""
    recipe, plan, data = manifest.get("recipe"), manifest.get("plan", {}), manifest.get("data", {})
    if not (isinstance(recipe, dict) and isinstance(plan, dict) and isinstance(data, dict)):
        return False
    packing = plan.get("packing", {"on": False, "rows": 0})
    return (
        isinstance(recipe.get("train", {}), dict)
        and isinstance(manifest.get("id", ""), str)
        and isinstance(plan.get("global_batch_size", 0), int)
        and isinstance(packing, dict)
        and isinstance(packing.get("on"), bool)
        and isinstance(packing.get("rows"), int)
        and isinstance(data.get("fingerprint", ""), str)
        and isinstance(data.get("fingerprints", {}), dict)
        and isinstance(data.get("template_sha256", ""), str)
        and isinstance(data.get("template_date") or "", str)
        and is_whole_record(manifest.get("adapter", {}))
        and all(isinstance(manifest.get(name, {}), dict) for name in SECTIONS)
        and all(isinstance(part or {}, dict) for part in manifest.get("base", {}).values())
        and isinstance(manifest.get("tokenizer", {}).get("sha256", ""), str)
    )
