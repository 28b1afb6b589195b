"""The growth operators: Upcycle, Widen, Deepen, MultiplyExperts."""
