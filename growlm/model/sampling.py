"""Deprecated names of `growlm.inference.sampling`, kept until growlm 0.3."""

from growlm.runtime.deprecation import renamed_attributes

__getattr__ = renamed_attributes(
    __name__,
    {
        "Sampling": "growlm.inference.sampling:Sampling",
    },
)
