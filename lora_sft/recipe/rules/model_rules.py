"""What must hold together in `model`, `quantization` and `adapter`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lora_sft.recipe.locations import is_local
from lora_sft.recipe.resolved import Recipe
from lora_sft.recipe.rules.finding import Finding

_COMMIT_OR_TAG = re.compile(r"(?!main$|master$).+")


def remote_code_is_pinned(recipe: Recipe) -> Iterator[Finding]:
    """Code from a repository runs with the user's rights; a branch may change under them."""
    model = recipe.model
    is_pinned = is_local(model.location) or _COMMIT_OR_TAG.match(model.revision or "")
    if model.trust_remote_code and not is_pinned:
        what = f"trust_remote_code runs whatever code {model.model_name_or_path} holds that day"
        fix = "write model.revision: <the commit you have read>"
        yield Finding(("model.trust_remote_code", "model.revision"), what, fix)


def quantization_says_how(recipe: Recipe) -> Iterator[Finding]:
    """BitsAndBytesConfig does nothing unless exactly one of its two switches is on."""
    settings = recipe.quantization
    if settings is None:
        return
    switches = ("quantization.load_in_4bit", "quantization.load_in_8bit")
    in_4bit, in_8bit = (settings.get(path.rpartition(".")[2]) for path in switches)
    if in_4bit and in_8bit:
        what = "a model cannot be loaded in 4 bits and in 8 bits"
        yield Finding(switches, what, "delete one of the two lines")
    elif not in_4bit and not in_8bit:
        what = "quantization says neither load_in_4bit nor load_in_8bit"
        yield Finding(("quantization", *switches), what, "write quantization: nf4, or null")


def the_head_takes_no_adapter(recipe: Recipe) -> Iterator[Finding]:
    """TRL computes the loss from the head's own weight, so an adapter there never learns."""
    targets = recipe.adapter.lora.get("target_modules")
    names = targets if isinstance(targets, list) else [targets]
    if any(str(name).rpartition(".")[2] == "lm_head" for name in names):
        what = "an adapter on lm_head would never be trained"
        fix = "take lm_head out of adapter.target_modules, or write adapter.modules_to_save: "
        yield Finding(("adapter.target_modules",), what, f"{fix}[lm_head]")


def an_adapter_has_targets(recipe: Recipe) -> Iterator[Finding]:
    """An empty list would train nothing."""
    if recipe.adapter.lora.get("target_modules") == []:
        what = "adapter.target_modules is empty, so nothing would be trained"
        yield Finding(("adapter.target_modules",), what, "write adapter.target_modules: all-linear")


def a_continued_adapter_keeps_its_shape(recipe: Recipe) -> Iterator[Finding]:
    """The saved adapter brings its own rank and targets; others could not be loaded into it."""
    if not recipe.adapter.init_from:
        return
    given = tuple(f"adapter.{name}" for name in recipe.adapter.lora)
    if given:
        what = f"adapter.init_from brings its own settings, so {', '.join(given)} cannot be set"
        yield Finding(("adapter.init_from", *given), what, f"delete {', '.join(given)}")
