"""Convert between growlm checkpoints and Hugging Face models; `python -m growlm.convert` is the command."""

from growlm.huggingface.config_reading import is_hf_folder, read_hf_config
from growlm.huggingface.folder_conversion import to_growlm, to_huggingface
from growlm.huggingface.folders.folder_growth import grow_folder
from growlm.huggingface.tensor_conversion import HuggingFaceTensors

__all__ = [
    "HuggingFaceTensors",
    "grow_folder",
    "is_hf_folder",
    "read_hf_config",
    "to_growlm",
    "to_huggingface",
]
