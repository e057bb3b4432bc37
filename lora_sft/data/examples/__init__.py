"""From source rows to examples: conversations, prompts with completions, text, token ids."""
