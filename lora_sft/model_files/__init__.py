"""Read the files of a base model on disk without loading the model."""
