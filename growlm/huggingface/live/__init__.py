"""Grow transformers models in memory; `growlm.growth.grow` is the function to call."""
