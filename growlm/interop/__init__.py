"""The old name of `growlm.huggingface`; it works until growlm 0.3."""

from growlm.runtime.deprecation import renamed_attributes

__getattr__ = renamed_attributes(
    __name__,
    {
        "HuggingFaceTensors": "growlm.huggingface:HuggingFaceTensors",
        "is_hf_folder": "growlm.huggingface:is_hf_folder",
        "read_hf_config": "growlm.huggingface:read_hf_config",
        "to_growlm": "growlm.huggingface:to_growlm",
        "to_huggingface": "growlm.huggingface:to_huggingface",
    },
)
