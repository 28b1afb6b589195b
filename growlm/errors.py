"""Forward to `growlm.runtime.errors`, the new name of this module; removed in growlm 0.3."""

from growlm.runtime.deprecation import renamed_attributes

__getattr__ = renamed_attributes(
    __name__,
    {
        "DiskError": "growlm.runtime.errors:DiskError",
        "RunError": "growlm.runtime.errors:RunError",
        "UserError": "growlm.runtime.errors:UserError",
    },
)
