"""The kinds of task: their columns, prompts, answers and metrics. This folder imports no torch."""
