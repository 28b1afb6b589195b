"""Optimizers, the learning-rate schedule, and the scaling of steps after a growth."""
