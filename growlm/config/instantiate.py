"""The one place where a config names a class to build."""

from __future__ import annotations

from typing import Any

from hydra.utils import get_object, instantiate

from growlm.runtime.errors import UserError

ALLOWED_PACKAGES = ("growlm.", "lightning.pytorch.callbacks.", "torch.optim.")


def instantiate_target(key: str, spec: Any) -> Any:
    """Build `spec["_target_"]` with the other entries as arguments.

    Args:
        path: The spec's key, for the message.
        spec: From the user's own config; never from a checkpoint.

    Raises:
        UserError: If the class is not of an allowed package (at any depth), or cannot be built.
    """
    _check_targets(key, spec, must_have=True)
    try:
        return instantiate(spec)
    except Exception as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(key, spec["_target_"], f"cannot be built: {reason}") from error


def _check_targets(key_path: str, spec: Any, must_have: bool = False) -> None:
    if isinstance(spec, dict):
        target = spec.get("_target_")
        if must_have and target is None:
            raise UserError(key_path, spec, "needs a _target_, the class to build")
        if target is not None:
            _check_class(f"{key_path}._target_", str(target))
        for key, value in spec.items():
            _check_targets(f"{key_path}.{key}", value)
    elif isinstance(spec, list | tuple):
        for index, value in enumerate(spec):
            _check_targets(f"{key_path}.{index}", value)


def _check_class(key: str, target: str) -> None:
    """A class that one of the allowed packages defines: through a module's own imports a path leads anywhere."""
    allowed = f"must be a class of {', '.join(package.rstrip('.') for package in ALLOWED_PACKAGES)}"
    if not target.startswith(ALLOWED_PACKAGES):
        raise UserError(key, target, allowed)
    try:
        found = get_object(target)
    except Exception as error:  # Hydra and the module it imports raise what they like
        raise UserError(key, target, f"there is no such class; {allowed}") from error
    if not isinstance(found, type) or not found.__module__.startswith(ALLOWED_PACKAGES):
        raise UserError(key, target, allowed)
