"""Turn examples into labelled rows: decide which tokens are learned."""
