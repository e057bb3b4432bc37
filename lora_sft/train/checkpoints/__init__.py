"""Checkpoints on disk: sealed, found again, and known to be of the same run."""
