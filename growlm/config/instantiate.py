"""Instantiate classes that a config names, from allowed packages only."""

from __future__ import annotations

from typing import Any

from hydra.utils import get_object, instantiate

from growlm.runtime.errors import UserError

ALLOWED_PACKAGES = ("growlm.", "lightning.pytorch.callbacks.", "torch.optim.")


def instantiate_target(key: str, spec: Any) -> Any:
    """Instantiate the class `spec["_target_"]` with the other entries as arguments.

    Args:
        key: Config key of the spec, for messages.
        spec: Spec from the user's own config; never from a checkpoint.

    Raises:
        UserError: If a class (at any depth) is not from an allowed package, or cannot be instantiated.
    """
    _check_targets(key, spec, must_have=True)
    try:
        return instantiate(spec)
    except Exception as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(key, spec["_target_"], f"cannot be instantiated: {reason}") from error


def _check_targets(key_path: str, spec: Any, must_have: bool = False) -> None:
    if isinstance(spec, dict):
        target = spec.get("_target_")
        if must_have and target is None:
            raise UserError(key_path, spec, "needs a _target_: the class to instantiate")
        if target is not None:
            _check_class(f"{key_path}._target_", str(target))
        for key, value in spec.items():
            _check_targets(f"{key_path}.{key}", value)
    elif isinstance(spec, list | tuple):
        for index, value in enumerate(spec):
            _check_targets(f"{key_path}.{index}", value)


def _check_class(key: str, target: str) -> None:
    """Check that an allowed package itself defines the class: imports in a module would lead to any other."""
    reason = f"must be a class of {', '.join(package.rstrip('.') for package in ALLOWED_PACKAGES)}"
    if not target.startswith(ALLOWED_PACKAGES):
        raise UserError(key, target, reason)
    try:
        found = get_object(target)
    except Exception as error:  # Hydra, and the module that it imports, may raise anything
        raise UserError(key, target, f"there is no such class; {reason}") from error
    if not isinstance(found, type) or not found.__module__.startswith(ALLOWED_PACKAGES):
        raise UserError(key, target, reason)
