"""Check that merged weights answer as the base with its adapter does."""
