"""Seal checkpoints, find the one to continue from, and check that it is of the same run."""
