"""lora-sft: parameter-efficient fine-tuning of causal language models, proved step by step."""

__version__ = "0.1.0"
