"""Compose a run's config from files and overrides, and check it against what each of them sets."""
