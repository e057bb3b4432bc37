"""From an adapted model and tokenised rows to a trained adapter."""
