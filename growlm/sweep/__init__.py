"""Run sweeps: many runs from one command, which can be repeated until all have finished."""
