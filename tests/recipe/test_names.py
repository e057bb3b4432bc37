"""The error for a name that is not a setting gives the setting to use instead."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lora_sft.recipe.library_fields import library_fields, read_snapshot
from lora_sft.recipe.other_names import (
    ADAPTER_SET_BY_RUN,
    OTHER_TOOLS_NAMES,
    REMOVED_NAMES,
    TRAIN_OWNED_ELSEWHERE,
)
from lora_sft.recipe.schema import (
    ADAPTER_DEFAULTS,
    QUANTIZATION_PRESETS,
    TRAIN_DEFAULTS,
    quantization_fields,
    train_fields,
)
from lora_sft.recipe.suggest import all_settings
from tests.recipe.recipes import SMALLEST, fault_of

TYPOS = [
    ("trian", "train"),
    ("modl", "model"),
    ("model.dtpye", "model.dtype"),
    ("tokenizer.pad_tokn", "tokenizer.pad_token"),
    ("quantization.load_in_4bits", "quantization.load_in_4bit"),
    ("adapter.target_module", "adapter.target_modules"),
    ("adapter.lora_alhpa", "adapter.lora_alpha"),
    ("data.max_lenght", "data.max_length"),
    ("data.datasets.0.formt", "data.datasets.0.format"),
    ("data.validation.fracton", "data.validation.fraction"),
    ("train.learning_ratee", "train.learning_rate"),
    ("train.global_batchsize", "train.global_batch_size"),
    ("train.per_device_train_batchsize", "train.per_device_train_batch_size"),
    ("evaluate.max_new_token", "evaluate.max_new_tokens"),
    ("export.merg", "export.merge"),
    ("outputdir", "output_dir"),
]


@pytest.mark.parametrize(("typo", "meant"), TYPOS)
def test_the_error_for_a_typo_names_the_most_similar_setting(tmp_path, typo, meant):
    fault = fault_of(tmp_path, SMALLEST, f"{typo}=1")
    name = meant.rpartition(".")[2]
    assert fault.where == f"command line  {typo}"
    assert fault.fix.startswith(f'did you mean "{name}"? write {meant}: ')


def test_the_right_setting_is_found_for_nearly_every_missing_letter():
    from lora_sft.recipe.suggest import advise_on_unknown

    names = [name for name in train_fields() if len(name) > 5]
    typos = [
        (name, name[:cut] + name[cut + 1 :]) for name in names for cut in (1, 3, len(name) - 2)
    ]
    right = sum(
        f'"{name}"' in advise_on_unknown("train", typo, 1, train_fields()).fix
        for name, typo in typos
        if typo not in names
    )
    assert len(typos) > 300
    assert right / len(typos) > 0.97


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        (
            "learning_rate=2e-5",
            '"learning_rate" belongs under train: write train.learning_rate: 2.0e-05',
        ),
        (
            "data.learning_rate=1",
            '"learning_rate" belongs under train: write train.learning_rate: 1',
        ),
        ("max_length=64", '"max_length" belongs under data: write data.max_length: 64'),
        ("train.r=4", '"r" belongs under adapter: write adapter.r: 4'),
        ("bf16=auto", '"bf16" belongs under train: write train.bf16: true'),
        (
            "evaluate.nonsense=1",
            "the settings here are: metrics, max_new_tokens, batch_size, num_samples",
        ),
        ("train.nonsense=1", "train has the settings of SFTConfig (trl "),
    ],
)
def test_the_error_for_a_setting_in_the_wrong_section_names_the_right_section(
    tmp_path, override, fix
):
    assert fault_of(tmp_path, SMALLEST, override).fix.startswith(fix)


def test_the_error_for_a_key_with_dots_gives_the_line_without_dots(tmp_path):
    fault = fault_of(tmp_path, SMALLEST + "train.seed: 3\n")
    assert fault.fix == "a key cannot contain dots: under train, write seed: 3"


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("train.assistant_only_loss=true", "write data.loss_on: assistant"),
        ("train.completion_only_loss=false", "write data.loss_on: all"),
        ("train.max_length=512", "write data.max_length: 512"),
        ("train.packing=true", "write data.packing: auto"),
        ("train.packing_strategy=bfd", "delete the line: data.packing decides this"),
        ("train.padding_free=true", "delete the line: data.packing decides this"),
        ("train.truncation_mode=keep_start", "write data.overlong: keep_start"),
        ("train.chat_template_path=x.jinja", "write data.chat_template: x.jinja"),
        ("train.pad_token='<pad>'", "write tokenizer.pad_token: <pad>"),
        ("train.dataset_text_field=body", "write data.datasets.0.rename_columns: {body: text}"),
        ("train.output_dir=out", "write output_dir: out"),
        ("train.model_init_kwargs={dtype: float16}", "write model.dtype: float16"),
        ("train.trust_remote_code=true", "write model.trust_remote_code: true"),
        ("train.hub_token=abc", "delete the line: a recipe must not contain secrets; set the"),
        ("train.warmup_ratio=0.1", "write train.warmup_steps: 0.1"),
        ("train.evaluation_strategy=steps", "write train.eval_strategy: steps"),
        ("train.max_seq_length=99", "write data.max_length: 99"),
        ("train.group_by_length=true", "write train.train_sampling_strategy: group_by_length"),
        ("train.logging_dir=logs", "delete the line: set the environment variable TENSORBOARD"),
        ("train.no_cuda=true", "write train.use_cpu: true"),
        ("train.tokenizer=gpt2", "write tokenizer.path: gpt2"),
        ("lora_rank=8", "write adapter.r: 8"),
        ("adapter.lora_r=8", "write adapter.r: 8"),
        ("lora_target=all", "write adapter.target_modules: all-linear"),
        ("lora_target='q_proj,v_proj'", "write adapter.target_modules: [q_proj, v_proj]"),
        ("data.cutoff_len=99", "write data.max_length: 99"),
        ("micro_batch_size=2", "write train.per_device_train_batch_size: 2"),
        ("num_epochs=3", "write train.num_train_epochs: 3"),
        ("base_model=org/name", "write model.model_name_or_path: org/name"),
        ("sample_packing=true", "write data.packing: auto"),
        ("train_on_inputs=true", "write data.loss_on: all"),
        ("load_in_4bit=true", "write quantization: nf4"),
        ("quantization_bit=8", "write quantization: int8"),
        ("val_set_size=0.05", "write data.validation: {fraction: 0.05}"),
        ("val_set_size=500", "write data.validation: {fraction: 0.05}"),
        ("dataset='a,b'", "write data.datasets: [{path: a}, {path: b}]"),
        ("template=qwen", "delete the line: the tokenizer's own template is used"),
        ("finetuning_type=lora", "delete the line: an adapter is always trained"),
        ("wandb_project=x", "write train.report_to: wandb, and set WANDB_PROJECT"),
        ("special_tokens={pad_token: '<pad>'}", "write tokenizer.pad_token: <pad>"),
        ("lora_model_dir=null", "delete the line"),
        ("adapter.task_type=CAUSAL_LM", "delete the line: it follows from the model and the task"),
    ],
)
def test_the_error_for_a_name_from_elsewhere_gives_the_line_to_write(tmp_path, override, fix):
    fault = fault_of(tmp_path, SMALLEST, override)
    assert fault.fix.startswith(fix)
    assert "abc" not in str(fault)


def test_the_fix_for_every_name_from_elsewhere_sets_an_existing_setting():
    from lora_sft.recipe.other_names import Advice

    known = set(all_settings()) | {"quantization", "output_dir", "data.datasets"}
    seen = 0
    for table in (TRAIN_OWNED_ELSEWHERE, REMOVED_NAMES, OTHER_TOOLS_NAMES):
        for name, make_fix in table.items():
            for value in (True, False, 1, 0.1, "word", {"dtype": "auto"}):
                target = Advice("", make_fix(value)).target
                assert target is None or target in known or target == "model.dtype", name
                seen += 1
    assert seen > 500


def test_a_required_setting_under_a_wrong_name_is_reported_once(tmp_path):
    fault = fault_of(tmp_path, SMALLEST.replace("max_length", "max_seq_len"))
    assert fault.fix == "write data.max_length: 128"


def test_the_snapshot_matches_the_installed_libraries():
    pytest.importorskip("trl")
    root = Path(__file__).parents[2]
    finished = subprocess.run(
        [sys.executable, "tools/snapshot_library_fields.py", "--check"],
        cwd=root,
        env={"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert len(library_fields("SFTConfig")) > 100
    assert len(library_fields("LoraConfig")) > 30


def test_our_tables_contain_only_existing_settings():
    assert TRAIN_DEFAULTS.keys() <= train_fields().keys()
    assert TRAIN_OWNED_ELSEWHERE.keys() <= library_fields("SFTConfig").keys()
    assert ADAPTER_DEFAULTS.keys() | ADAPTER_SET_BY_RUN <= library_fields("LoraConfig").keys()
    for preset in QUANTIZATION_PRESETS.values():
        assert preset.keys() <= quantization_fields().keys()


def test_the_installed_library_has_none_of_the_removed_names():
    assert not REMOVED_NAMES.keys() & library_fields("SFTConfig").keys()


def test_the_snapshot_contains_the_libraries_versions():
    assert set(read_snapshot()["versions"]) == {"trl", "transformers", "peft", "bitsandbytes"}
    json.dumps(read_snapshot())
