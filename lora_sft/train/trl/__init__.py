"""Use TRL: its trainer, its arguments and its collator. Only this room imports trl."""
