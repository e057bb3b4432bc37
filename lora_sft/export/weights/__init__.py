"""From adapter and base weights on disk to merged weights on disk, tensor by tensor."""
