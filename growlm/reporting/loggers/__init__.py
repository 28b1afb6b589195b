"""Metrics for Lightning loggers: W&B, TensorBoard and others."""
