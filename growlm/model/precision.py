"""Deprecated names of `growlm.inference.precision`, kept until growlm 0.3."""

from growlm.runtime.deprecation import renamed_attributes

__getattr__ = renamed_attributes(
    __name__,
    {
        "in_precision": "growlm.inference.precision:cast_weights",
    },
)
