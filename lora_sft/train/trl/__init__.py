"""The door to TRL: its trainer, its arguments, its batches."""
