"""Rules about the sections `model`, `quantization` and `adapter`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lora_sft.file_names import ADAPTER_CONFIG_FILE, MANIFEST_FILE
from lora_sft.recipe.locations import is_fixed
from lora_sft.recipe.resolved import Recipe
from lora_sft.recipe.rules.finding import Finding


def remote_code_has_a_fixed_revision(recipe: Recipe) -> Iterator[Finding]:
    """Refuse remote code without a fixed revision.

    The code runs with the user's rights, and the code on a branch can change.
    """
    model = recipe.model
    if model.trust_remote_code and not is_fixed(model.location, model.revision):
        what = (
            f"trust_remote_code runs Python code of {model.model_name_or_path}, "
            "and without a fixed revision this code can change"
        )
        fix = "write model.revision: <a commit whose code you have read>"
        yield Finding(("model.trust_remote_code", "model.revision"), what, fix)


def remote_code_is_not_trusted_by_a_run(recipe: Recipe) -> Iterator[Finding]:
    """Refuse trust that a recipe in a run directory sets: whoever made the directory set it."""
    origin = recipe.places.get("model.trust_remote_code")
    if origin is None or origin.line is None or not recipe.model.trust_remote_code:
        return
    if _is_run_directory(origin.folder):
        what = "this recipe lies in a run directory, and a run directory cannot trust remote code"
        fix = "add --trust-remote-code, if you trust the code of the base model"
        yield Finding(("model.trust_remote_code",), what, fix)


def _is_run_directory(folder: Path) -> bool:
    return (folder / MANIFEST_FILE).exists() or (folder / "adapter" / ADAPTER_CONFIG_FILE).exists()


def quantization_sets_one_switch(recipe: Recipe) -> Iterator[Finding]:
    """Refuse a quantization that does not set exactly one of the two switches.

    BitsAndBytesConfig has no effect without a switch, and it cannot use both.
    """
    settings = recipe.quantization
    if settings is None:
        return
    switches = ("quantization.load_in_4bit", "quantization.load_in_8bit")
    in_4bit, in_8bit = (settings.get(path.rpartition(".")[2]) for path in switches)
    if in_4bit and in_8bit:
        what = "a model cannot be loaded in 4 bits and in 8 bits"
        yield Finding(switches, what, "delete one of the two lines")
    elif not in_4bit and not in_8bit:
        what = "quantization sets neither load_in_4bit nor load_in_8bit"
        yield Finding(("quantization", *switches), what, "write quantization: nf4, or null")


def lm_head_is_not_a_target(recipe: Recipe) -> Iterator[Finding]:
    """Refuse an adapter on `lm_head`: it would never learn.

    TRL computes the loss from the weight of `lm_head` itself and does not call its adapter.
    """
    targets = recipe.adapter.lora.get("target_modules")
    names = targets if isinstance(targets, list) else [targets]
    if any(str(name).rpartition(".")[2] == "lm_head" for name in names):
        what = "an adapter on lm_head would never be trained"
        fix = "remove lm_head from adapter.target_modules, or write adapter.modules_to_save: "
        yield Finding(("adapter.target_modules",), what, f"{fix}[lm_head]")


def target_modules_are_not_empty(recipe: Recipe) -> Iterator[Finding]:
    """Refuse an empty list of target modules: nothing would be trained."""
    if recipe.adapter.lora.get("target_modules") == []:
        what = "adapter.target_modules is empty, so nothing would be trained"
        yield Finding(("adapter.target_modules",), what, "write adapter.target_modules: all-linear")


def continued_adapter_keeps_its_settings(recipe: Recipe) -> Iterator[Finding]:
    """Refuse adapter settings beside `init_from`.

    The saved adapter has its own rank and targets, and its weights do not fit other values.
    """
    if not recipe.adapter.init_from:
        return
    given = tuple(f"adapter.{name}" for name in recipe.adapter.lora)
    if given:
        what = (
            "the adapter in adapter.init_from has its own settings, "
            f"so {', '.join(given)} cannot be set"
        )
        yield Finding(("adapter.init_from", *given), what, f"delete {', '.join(given)}")
