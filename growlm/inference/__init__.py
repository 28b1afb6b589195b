"""Inference with a trained model: generating text and scoring texts (without Lightning)."""
