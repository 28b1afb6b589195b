"""Read the files of finished and unfinished runs and sweeps."""
