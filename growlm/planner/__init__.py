"""Estimate the memory, time and communication of a plan before anything is trained."""
