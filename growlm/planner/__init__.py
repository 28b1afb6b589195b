"""Estimates of memory, time and communication, before anything is trained."""
