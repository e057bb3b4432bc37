"""List, find and copy the recipes that are part of the package.

The list takes each fact from the recipe itself. Two comments at the top of a recipe give the facts
that are not settings: `# title: ...` and `# hardware: ...`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_sft.errors import RecipeError
from lora_sft.recipe.reader import read_recipe
from lora_sft.recipe.resolved import Recipe
from lora_sft.recipe.shipped import find_shipped_folder


@dataclass(frozen=True)
class ShippedRecipe:
    """One shipped recipe. `name` is its path in the folder `recipes`, without `.yaml`."""

    name: str
    path: str
    title: str
    model: str
    method: str
    hardware: str


def list_recipes() -> list[ShippedRecipe]:
    """Return every shipped recipe, sorted by name."""
    folder = find_shipped_folder("recipes")
    if folder is None:
        return []
    return [_describe(path, folder) for path in sorted(folder.rglob("*.yaml"))]


def copy_recipe(name: str, destination: str | Path) -> Path:
    """Copy a shipped recipe and return the path of the copy.

    A copy works in any folder: shipped recipes contain no relative paths.

    Raises: RecipeError if no recipe has this name, or if the destination already exists.
    """
    source = Path(find_recipe(name).path)
    target = Path(destination)
    if target.is_dir():
        target = target / source.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise RecipeError(
            f"{target} already exists", str(target), "choose another file name, or delete this file"
        ) from None
    return target


def find_recipe(name: str) -> ShippedRecipe:
    """Return the shipped recipe of this name.

    Raises: RecipeError if no recipe has this name. Its fix names the most similar recipe.
    """
    wanted = name.removesuffix(".yaml")
    recipes = list_recipes()
    for recipe in recipes:
        if recipe.name == wanted:
            return recipe
    from difflib import get_close_matches

    near = get_close_matches(wanted, [recipe.name for recipe in recipes], n=1, cutoff=0.4)
    fix = f"did you mean {near[0]}?" if near else "see `lora-sft recipes`"
    raise RecipeError(f'no shipped recipe has the name "{name}"', "recipes copy", fix)


def _describe(path: Path, folder: Path) -> ShippedRecipe:
    notes = _read_notes(path)
    recipe = read_recipe(path)
    return ShippedRecipe(
        name=path.relative_to(folder).with_suffix("").as_posix(),
        path=str(path),
        title=notes.get("title", ""),
        model=recipe.model.model_name_or_path,
        method=_find_method(recipe),
        hardware=notes.get("hardware", ""),
    )


def _read_notes(path: Path) -> dict[str, str]:
    """Return the `# name: value` comments before the first setting."""
    notes: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            break
        name, colon, value = line.lstrip("# ").partition(":")
        if colon:
            notes[name.strip().lower()] = value.strip()
    return notes


def _find_method(recipe: Recipe) -> str:
    """Return the method of a recipe: `LoRA`, `QLoRA nf4` or `LoRA int8`, or the same with DoRA."""
    adapter = "DoRA" if recipe.adapter.lora.get("use_dora") else "LoRA"
    settings = recipe.quantization or {}
    if settings.get("load_in_4bit"):
        return f"Q{adapter} {settings.get('bnb_4bit_quant_type', 'fp4')}"
    return f"{adapter} int8" if settings.get("load_in_8bit") else adapter
