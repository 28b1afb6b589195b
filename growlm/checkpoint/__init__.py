"""Save and load growlm checkpoints: safetensors files and plain JSON, nothing that can run code."""

from growlm.checkpoint.checkpoint_folder import load_model, read_optimizer_states, save_model
from growlm.runtime.deprecation import renamed_attributes

__all__ = ["load_model", "read_optimizer_states", "save_model"]

__getattr__ = renamed_attributes(
    __name__,
    {
        "load_states": "read_optimizer_states",
    },
)
