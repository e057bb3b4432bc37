"""Run `lora_sft`, but make one gradient of rank 1 NaN at optimizer step POISON.

Usage: `POISON=2 torchrun ... -m tests.distributed.poison train RECIPE`.
"""

from __future__ import annotations

import os
from typing import Any

import lora_sft.train.fit as fit
from lora_sft.cli.app import main

build_trainer = fit.build_trainer


def build_poisoned_trainer(*args: Any, **kwargs: Any) -> Any:
    trainer = build_trainer(*args, **kwargs)
    weight = next(each for each in trainer.model.parameters() if each.requires_grad)

    def make_nan(gradient: Any) -> Any:
        is_now = trainer.state.global_step + 1 == int(os.environ["POISON"])
        return gradient * float("nan") if is_now and os.environ.get("RANK") == "1" else gradient

    weight.register_hook(make_nan)
    return trainer


if __name__ == "__main__":
    fit.build_trainer = build_poisoned_trainer
    main()
