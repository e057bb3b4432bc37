"""The two kinds of run for the GPU tests: LoRA and QLoRA, both in bfloat16."""

from __future__ import annotations

import pytest

LORA = {"model": {"dtype": "bfloat16"}}
QLORA = {**LORA, "quantization": "nf4"}
both_kinds = pytest.mark.parametrize(
    "sections", [pytest.param(LORA, id="lora"), pytest.param(QLORA, id="qlora")]
)
