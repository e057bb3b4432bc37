"""Turn source rows into examples: conversations, prompts with completions, texts, token ids."""
