"""Provide the parts of growlm's own transformers class."""
