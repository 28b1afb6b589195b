"""The growth operators `Upcycle`, `Widen`, `Deepen` and `MultiplyExperts`."""
