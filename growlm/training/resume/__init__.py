"""Find the state that a run continues from, and check that it fits."""
