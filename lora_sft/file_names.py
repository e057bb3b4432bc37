"""The names of files that several rooms open, one constant for each name.

The layout of these folders is a promise to other programs: transformers and PEFT fix most names,
and users rely on ours. A name that one room alone opens stays in that room, and the files of a run
are properties of `run_directory.RunDirectory`.
"""

from __future__ import annotations

# A model folder, as transformers writes it.
MODEL_CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
SENTENCEPIECE_FILE = "tokenizer.model"
MODEL_WEIGHTS_FILE = "model.safetensors"
MODEL_WEIGHTS_INDEX_FILE = "model.safetensors.index.json"
CARD_FILE = "README.md"  # the card of a model or of an adapter
MERGE_REPORT_FILE = "merge_report.json"  # ours, beside merged weights

# An adapter folder, as PEFT writes it.
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
ORIGIN_FILE = "lora_sft.json"  # ours, beside an adapter: the base it was trained on, and how

# A run directory and its checkpoints; the Trainer fixes the first two names.
CHECKPOINT_PREFIX = "checkpoint-"
TRAINER_STATE_FILE = "trainer_state.json"
MANIFEST_FILE = "manifest.json"
