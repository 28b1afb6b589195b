"""Sweeps: many runs of one command, which can be repeated until all of them have finished."""
