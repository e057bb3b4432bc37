"""The processes of a run: which one this is, how they wait, watch each other, and stop."""
