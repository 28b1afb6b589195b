"""Send the metrics of a run to Lightning loggers: W&B, TensorBoard and others."""
