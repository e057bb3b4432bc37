"""The names of files that several folders of the package use, one constant per name.

Other programs rely on these names: transformers and PEFT define most of them, and lora-sft the
rest. A name that only one folder of the package uses is defined there. The paths of the files of a
run are properties of `run_directory.RunDirectory`.
"""

from __future__ import annotations

# In a model folder, as transformers writes it.
MODEL_CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
SENTENCEPIECE_FILE = "tokenizer.model"
MODEL_WEIGHTS_FILE = "model.safetensors"
MODEL_WEIGHTS_INDEX_FILE = "model.safetensors.index.json"
CARD_FILE = "README.md"  # the card of a model or of an adapter
MERGE_REPORT_FILE = "merge_report.json"  # lora-sft's own, next to merged weights

# In an adapter folder, as PEFT writes it.
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
ORIGIN_FILE = "lora_sft.json"  # lora-sft's own: the base of the adapter and its training

# In a run directory and its checkpoints. The Trainer defines the first two names.
CHECKPOINT_PREFIX = "checkpoint-"
TRAINER_STATE_FILE = "trainer_state.json"
MANIFEST_FILE = "manifest.json"
