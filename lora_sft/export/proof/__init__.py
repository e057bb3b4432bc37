"""Verify a merged model: compare its tensors and its answers with base model + adapter."""
