"""The metrics file is JSON in every line, whatever a step's numbers were."""

from __future__ import annotations

import json
import math

from transformers import TrainerControl, TrainerState, TrainingArguments

from lora_sft.run_directory import RunDirectory
from lora_sft.train.callbacks import MetricsFile


def refuse(name):
    raise AssertionError(f"{name} is no JSON")


def test_a_norm_that_is_infinite_is_null(tmp_path):
    run = RunDirectory(tmp_path)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    logs = {"loss": 2.5, "grad_norm": math.inf, "eval_loss": math.nan}
    MetricsFile(run).on_log(arguments, TrainerState(global_step=3), TrainerControl(), logs=logs)
    record = json.loads(run.metrics.read_text(), parse_constant=refuse)
    assert record == {"step": 3, "loss": 2.5, "grad_norm": None, "eval_loss": None}
