"""Optimizers, the learning-rate schedule, and the scaling of optimizer steps after a growth."""
