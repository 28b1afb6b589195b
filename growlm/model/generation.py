"""The old name of `growlm.inference.generation`; it works until growlm 0.3."""

from growlm.deprecation import renamed_attributes

__getattr__ = renamed_attributes(
    __name__,
    {
        "Continuation": "growlm.inference.generation:Continuation",
        "generate": "growlm.inference.generation:generate",
    },
)
