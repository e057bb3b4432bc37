"""Compute merged weights from adapter and base model on disk, tensor by tensor."""
