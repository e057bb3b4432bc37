"""What the safetensors files of a model hold, read without loading it."""
