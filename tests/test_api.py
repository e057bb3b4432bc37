"""The public functions of `lora_sft`: their signatures, their imports and their results."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lora_sft
from lora_sft.errors import CapabilityError, RecipeError

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
SIGNATURES = {
    "read_recipe": "(path, overrides=())",
    "train_recipe": "(recipe, *, resume='auto', overwrite=False)",
    "evaluate_run": "(run, *, split=None, against=None)",
    "merge_adapter": "(adapter, out, *, base=None, onto='dequantized', verify='auto')",
    "preview_rows": "(recipe, *, split='train', rows=None)",
}


def import_every_module() -> int:
    """Import every module of the package and return their number."""
    names = [each.name for each in pkgutil.walk_packages(lora_sft.__path__, "lora_sft.")]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    return len(names)


def describe_signature(function: object) -> str:
    signature = inspect.signature(function)
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
    ]
    return str(inspect.Signature(bare))


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_public_function_has_the_promised_signature_and_a_docstring(name):
    function = getattr(lora_sft, name)
    assert describe_signature(function) == SIGNATURES[name]
    hints = inspect.get_annotations(function)
    assert set(inspect.signature(function).parameters) | {"return"} == set(hints)
    assert function.__doc__
    assert name in lora_sft.__all__


def test_importing_the_package_and_reading_a_recipe_import_no_torch(write_recipe):
    program = (
        "import sys, lora_sft; recipe = lora_sft.read_recipe(sys.argv[1]);"
        "lora_sft.train_recipe; lora_sft.preview_rows; assert isinstance(recipe, lora_sft.Recipe);"
        "assert not {'torch', 'transformers', 'datasets'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program, str(write_recipe())], check=True)


def test_every_public_function_works_after_all_modules_are_imported(write_recipe, tmp_path):
    assert import_every_module() > 200
    recipe = lora_sft.read_recipe(write_recipe(), ["train.max_steps=2"])
    assert isinstance(recipe, lora_sft.Recipe)
    preview = lora_sft.preview_rows(recipe, split="validation", rows=2).to_dict()
    assert len(preview["rows"]) == 2
    assert preview["account"]["read"] > 2
    result = lora_sft.train_recipe(recipe)
    assert (result.step, result.exit_code) == (2, 0)
    evaluation = lora_sft.evaluate_run(tmp_path / "run")
    assert evaluation.split == "validation"
    assert set(evaluation.scores) == {"base", "adapter"}
    report = lora_sft.merge_adapter(tmp_path / "run", tmp_path / "merged")
    assert report["correctness"]["passed"]
    assert Path(report["output"]) == tmp_path / "merged"


def test_a_second_call_does_not_change_a_finished_run(write_recipe):
    recipe = lora_sft.read_recipe(write_recipe(), ["train.max_steps=2"])
    assert lora_sft.train_recipe(recipe) == lora_sft.train_recipe(recipe)
    with pytest.raises(RecipeError, match="never"):
        lora_sft.train_recipe(
            lora_sft.read_recipe(recipe.source, ["train.max_steps=3"]), resume="never"
        )


def test_training_reports_nothing_to_the_hub(write_recipe, monkeypatch):
    sent = []
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY")
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **what: sent.append(what))
    lora_sft.train_recipe(lora_sft.read_recipe(write_recipe(), ["train.max_steps=2"]))
    assert sent == []


def test_comparing_two_runs_is_refused(tmp_path):
    with pytest.raises(CapabilityError, match="compared"):
        lora_sft.evaluate_run(tmp_path, against=tmp_path)


def test_an_unknown_name_raises_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian_recipe'"):
        _ = lora_sft.trian_recipe
    assert set(lora_sft.__all__) <= set(dir(lora_sft))


def test_the_example_in_the_page_runs(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    finished = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    # If DeepSpeed is installed, it logs to stdout during its import.
    lines = [line for line in finished.stdout.splitlines() if not line.startswith("[")]
    assert re.fullmatch(r"\d+ rows; the first one teaches \d+ tokens", lines[0])
    assert lines[1] == "step 2, exit code 0"
    assert re.fullmatch(r"loss on \d+ validation rows: \d+\.\d\d", lines[2])
    assert re.fullmatch(r"\d+ tensors merged, verified: True", lines[3])
