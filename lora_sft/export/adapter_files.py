"""Write the adapter folder: PEFT's files, the tokenizer, the model card and `lora_sft.json`.

`lora_sft.json` records facts that PEFT's config does not have: the base model's dtype and
quantisation in training, and the tokens that end a turn. A merge reads it. An adapter that was
trained with another tool has no such file and can still be merged.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lora_sft.errors import ExportError
from lora_sft.export.adapter_origin import AdapterOrigin
from lora_sft.file_names import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, ORIGIN_FILE
from lora_sft.run_directory import RunDirectory, write_json

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from lora_sft.model.base_model import CausalModel

NUM_SAMPLED_ROWS = 16
SAMPLED_TOKENS = 256


def write_adapter_folder(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    origin: AdapterOrigin,
) -> None:
    """Write all files that a user of the adapter needs, and check the saved weights.

    Raises: ExportError if `check_adapter_file` finds a fault.
    """
    from lora_sft.export.serving.serving_files import write_adapter_serving_files

    model.save_pretrained(folder)
    write_adapter_serving_files(folder, tokenizer, origin)
    _sort_adapter_config(folder / ADAPTER_CONFIG_FILE)
    write_json(folder / ORIGIN_FILE, asdict(origin))
    check_adapter_file(folder / ADAPTER_WEIGHTS_FILE)
    apply_umask(folder)


def write_validation_sample(run: RunDirectory, rows: Dataset | None) -> None:
    """Save the tokens of the first validation rows. A merge uses them to compare answers.

    The file is in the run directory. The adapter folder is given to others and must hold no data.
    """
    if rows is None:
        return
    count = min(len(rows), NUM_SAMPLED_ROWS)
    sample = [
        {name: list(rows[index][name])[:SAMPLED_TOKENS] for name in ("input_ids", "labels")}
        for index in range(count)
    ]
    write_json(run.validation_sample, {"rows": sample})


def apply_umask(folder: Path) -> None:
    """Set the mode of every file of weights to the mode that the user's umask allows.

    safetensors writes its files with mode 0600. A server that runs as another user could then read
    all files except the weights. Other files have the right mode, and some may be the user's own.
    """
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o666 & ~umask)


def check_adapter_file(path: Path) -> None:
    """Check that no tensor of a saved adapter is empty, and that not all B matrices are zero.

    Sharded training can save tensors without elements and raise no error. An adapter with only zero
    B matrices does not change the base model.

    Raises: ExportError if a check fails.
    """
    from safetensors import safe_open

    from lora_sft.model.saved_adapter import has_learned_nothing

    with safe_open(str(path), framework="pt") as file:
        names = sorted(file.keys())
        empty = [name for name in names if 0 in file.get_slice(name).get_shape()]
        learned_nothing = has_learned_nothing(file)
    if not names or empty:
        raise ExportError(
            f"the saved adapter is empty{f' ({empty[0]} has no elements)' if empty else ''}",
            str(path),
            "saving went wrong, the recipe is not the cause; the last checkpoint is complete",
        )
    if learned_nothing:
        raise ExportError(
            "every lora_B of the saved adapter is zero: nothing was learned",
            str(path),
            "train for more steps. In a short run also write train.warmup_steps: 0, because a "
            "warm-up begins with learning rate 0",
        )


def _sort_adapter_config(path: Path) -> None:
    """Sort the lists in the adapter's config, so that two equal runs write equal bytes.

    PEFT writes the target names in the order of a set, which differs between processes.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    for name, value in config.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            config[name] = sorted(value)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
