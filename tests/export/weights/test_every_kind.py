"""For every kind of LoRA adapter, the merged model computes the same as PEFT."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_sft.export.merge_plan import make_merge_plan
from lora_sft.export.merging import merge
from tests.export.adapters import KINDS, MAKERS, Kind, answer, make_adapter


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: make(folder / name.replace(" ", "-")) for name, make in MAKERS.items()}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_merged_model_answers_like_base_model_and_adapter(
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
    merge(replace(plan, output=tmp_path / "rounded", dtype="bfloat16"))
    exact = load_file(tmp_path / "merged" / "model.safetensors")
    rounded = load_file(tmp_path / "rounded" / "model.safetensors")
    assert exact.keys() == rounded.keys()
    for name, tensor in exact.items():
        assert torch.equal(rounded[name], tensor.bfloat16()), name


def test_all_35_kinds_have_different_names() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) == 35
