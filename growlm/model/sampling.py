"""The old name of `growlm.inference.sampling`; it works until growlm 0.3."""

from growlm.deprecation import renamed_attributes

__getattr__ = renamed_attributes(
    __name__,
    {
        "Sampling": "growlm.inference.sampling:Sampling",
    },
)
