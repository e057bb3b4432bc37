"""Export a run: write the adapter folder, merge it into the base model, verify, and push it."""
