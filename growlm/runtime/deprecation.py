"""Keep the old names of renamed objects working for one release, with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def renamed_attributes(module: str, new_names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a `__getattr__` for a module whose public names have changed.

    Args:
        module: `__name__` of the module.
        new_names: New name of each old name: `name` in the same module, or `package.module:name`.

    Returns:
        A function that warns and returns the renamed object, and raises `AttributeError` for other names.
    """

    def getattribute(name: str) -> Any:
        if name not in new_names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, new_name = new_names[name].rpartition(":")
        new_path = f"{home or module}.{new_name}"
        message = f"{module}.{name} is now {new_path}; the old name will be removed in growlm 0.3"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(import_module(home or module), new_name)

    return getattribute
