"""Find the state that a run resumes from, and check that it matches the run."""
