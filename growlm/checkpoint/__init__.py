"""A model on disk: safetensors and a plain JSON record, nothing that can run code."""

from growlm.checkpoint.checkpoint_folder import load_model, load_states, save_model

__all__ = ["load_model", "load_states", "save_model"]
