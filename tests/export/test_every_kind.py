"""Whatever PEFT saves for LoRA is merged to what PEFT computes, or refused by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lora_sft.export.merging import make_merge_plan, merge
from tests.export.adapters import KINDS, MAKERS, Kind, answer, make_adapter


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: make(folder / name.replace(" ", "-")) for name, make in MAKERS.items()}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_merged_model_answers_like_base_and_adapter(
    kind: Kind, bases: dict[str, Path], tmp_path: Path
) -> None:
    base = bases[kind.base]
    expected = make_adapter(
        base, tmp_path / "adapter", kind.lora, resized_tokens=kind.resized_tokens
    )
    plan = make_merge_plan(
        tmp_path / "adapter", tmp_path / "merged", base=str(base), dtype="float32", verify="tensors"
    )
    report = merge(plan)
    assert report["adapter_tensors_used"] == report["adapter_tensors_total"] > 0
    assert report["correctness"]["passed"]
    found = answer(tmp_path / "merged")
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5
    assert (expected[..., :400] - answer(base)).abs().max() > 1e-3
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert {name: config.get(name) for name in kind.config} == dict(kind.config)


def test_every_kind_was_tried() -> None:
    assert len(KINDS) == 35
    assert torch.get_default_dtype() == torch.float32
