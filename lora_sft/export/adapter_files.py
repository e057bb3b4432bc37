"""The adapter folder: PEFT's layout, the tokenizer, the card, and where the adapter comes from.

`lora_sft.json` beside the weights says what PEFT's own config does not: the dtype and the
quantisation that the base had while the adapter was trained, and the tokens that end a turn.
The merge reads it; an adapter trained elsewhere has none and is merged all the same.
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
    """Write everything that a user of the adapter needs, and read the weights' header back.

    Raises: ExportError where the file on disk is not what was trained.
    """
    from lora_sft.export.serving.serving_files import write_adapter_serving_files

    model.save_pretrained(folder)
    write_adapter_serving_files(folder, tokenizer, origin)
    _sort_adapter_config(folder / ADAPTER_CONFIG_FILE)
    write_json(folder / ORIGIN_FILE, asdict(origin))
    check_adapter_file(folder / ADAPTER_WEIGHTS_FILE)
    let_others_read(folder)


def write_validation_sample(run: RunDirectory, rows: Dataset | None) -> None:
    """Keep the first validation rows as tokens, for a merge to compare answers on.

    They stay in the run directory: an adapter folder is given to others, and holds no data.
    """
    if rows is None:
        return
    count = min(len(rows), NUM_SAMPLED_ROWS)
    sample = [
        {name: list(rows[index][name])[:SAMPLED_TOKENS] for name in ("input_ids", "labels")}
        for index in range(count)
    ]
    write_json(run.validation_sample, {"rows": sample})


def let_others_read(folder: Path) -> None:
    """Give every file the mode that the user's umask allows.

    safetensors writes its files for the owner alone (0600), and a server under another user could
    then read everything but the weights.
    """
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(0o666 & ~umask)


def check_adapter_file(path: Path) -> None:
    """Refuse an adapter with an empty tensor, or one whose B matrices never left zero.

    Raises: ExportError naming the first such tensor. (Sharded training setups save zero-sized
    tensors without an error; an adapter at zero is the base.)
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
            "this is a fault of the saving, not of the recipe; the last checkpoint is intact",
        )
    if learned_nothing:
        raise ExportError(
            "every lora_B of the saved adapter is zero: nothing was learned",
            str(path),
            "train for more steps, or with train.warmup_steps: 0 (a warm-up begins at rate zero)",
        )


def _sort_adapter_config(path: Path) -> None:
    """PEFT writes target names in set order; sorted, two equal runs give equal bytes."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for name, value in config.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            config[name] = sorted(value)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
