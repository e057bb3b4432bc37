"""The fields of a saved adapter's config are checked before PEFT or a merge computes with them."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from peft import LoraConfig
from safetensors.numpy import save_file

from lora_sft.errors import ModelError
from lora_sft.model_files.adapter_config import KINDS, check_adapter_files, read_adapter_config
from lora_sft.model_files.json_files import is_of_kind


def write_adapter(folder, **changes):
    import numpy as np

    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = {"base_model.model.q_proj.lora_A.weight": np.zeros((4, 64), np.float32)}
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", "text"),
        ("lora_alpha", [1]),
        ("target_modules", {"a": 1}),
        ("rank_pattern", {"a": "b"}),
    ],
)
def test_a_field_of_another_type_is_refused(tmp_path, field, value):
    with pytest.raises(ModelError, match=f"adapter_config.json: {field} must be") as caught:
        read_adapter_config(write_adapter(tmp_path, **{field: value}))
    assert caught.value.where == f"{tmp_path / 'adapter_config.json'}  {field}"


@pytest.mark.parametrize("changes", [{"r": 10**12}, {"r": -1}, {"rank_pattern": {"q_proj": 10**9}}])
def test_a_rank_that_no_tensor_can_have_is_refused_before_its_matrices_are_made(tmp_path, changes):
    with pytest.raises(ModelError, match=r"adapter_config.json: the rank .* is -?[1-9]"):
        check_adapter_files(write_adapter(tmp_path, **changes))


def test_the_types_are_those_of_peft():
    """A new field of PEFT gets a type here; each default has the type."""
    config = LoraConfig().to_dict()
    assert {field.name for field in fields(LoraConfig)} == set(KINDS)
    defaults = {name: config[name] for name in KINDS if name in config}
    assert all(is_of_kind(value, KINDS[name]) for name, value in defaults.items())
