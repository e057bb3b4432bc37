"""What a model answers, and how good the answers are."""
