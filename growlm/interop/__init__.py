"""Hugging Face models in and out. `python -m growlm.convert` is this as a command."""

from growlm.interop.config_reading import is_hf_folder, read_hf_config
from growlm.interop.conversion import to_growlm, to_huggingface
from growlm.interop.tensors import HuggingFaceTensors

__all__ = [
    "HuggingFaceTensors",
    "is_hf_folder",
    "read_hf_config",
    "to_growlm",
    "to_huggingface",
]
