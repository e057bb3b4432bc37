"""Generate a model's answers and score them."""
