"""Deprecated names of `growlm.inference.generation`, kept until growlm 0.3."""

from growlm.runtime.deprecation import renamed_attributes

__getattr__ = renamed_attributes(
    __name__,
    {
        "Continuation": "growlm.inference.generation:Continuation",
        "generate": "growlm.inference.generation:generate",
    },
)
