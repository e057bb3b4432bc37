"""Compute the numbers of a run before anything heavy is loaded."""
