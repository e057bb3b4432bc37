"""The tokenizer and its chat template: load, render, tokenize."""
