"""Load the tokenizer, and render conversations with its chat template."""
