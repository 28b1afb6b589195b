"""Read what finished and unfinished runs and sweeps left on disk."""
