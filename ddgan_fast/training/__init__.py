"""Training of the two networks: the step, the run and what a run leaves on disk."""
