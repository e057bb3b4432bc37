"""The base model, its quantisation, the adapter on it, and the count of what came of it."""
