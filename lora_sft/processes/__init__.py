"""The processes of a run: their ranks, and how they wait for each other, lock and stop."""
