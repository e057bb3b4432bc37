"""From examples to labelled rows: which tokens are learned."""
