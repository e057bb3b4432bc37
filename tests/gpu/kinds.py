"""The two kinds of run that every GPU test of a whole run covers, in the dtype that GPUs use."""

from __future__ import annotations

import pytest

LORA = {"model": {"dtype": "bfloat16"}}
QLORA = {**LORA, "quantization": "nf4"}
both_kinds = pytest.mark.parametrize(
    "sections", [pytest.param(LORA, id="lora"), pytest.param(QLORA, id="qlora")]
)
