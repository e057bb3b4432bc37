"""Answer people and programs: a chat in the terminal, and an OpenAI-compatible endpoint."""
