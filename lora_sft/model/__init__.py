"""Load and quantise the base model, put the adapter on it, and count its parameters."""
