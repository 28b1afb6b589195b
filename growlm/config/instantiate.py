"""Instantiate classes that a config names under `_target_`, with the keys beside it as arguments.

A class of the user's own command line or files is trusted; `growlm/config/trust.py` checks those of a resumed run
before anything here is called.
"""

from __future__ import annotations

from functools import partial, reduce
from importlib import import_module
from typing import Any

from growlm.config.own_classes import TARGET
from growlm.runtime.errors import UserError

POSITIONAL, PARTIAL = "_args_", "_partial_"


def instantiate_target(
    key: str,
    spec: Any,
    expected: type[Any] | None = None,
    positional: tuple[Any, ...] = (),
    **given: Any,
) -> Any:
    """Instantiate the class `spec["_target_"]` with the other entries as arguments, nested ones first.

    Args:
        key: Config key of the spec, for messages.
        spec: Mapping with `_target_`, and as Hydra has them `_args_` and `_partial_`.
        expected: Class that it must be a subclass of; None for any class or function.
        positional: Arguments that growlm gives it, before those of `_args_`.
        given: Further arguments that growlm gives it.

    Raises:
        UserError: If there is no such class, it is of another kind, or it cannot be instantiated.
    """
    if not isinstance(spec, dict) or spec.get(TARGET) is None:
        raise UserError(key, spec, f"needs a {TARGET}: the class to instantiate")
    target = str(spec[TARGET])
    found = find_object(f"{key}.{TARGET}", target)
    if expected is not None and not (isinstance(found, type) and issubclass(found, expected)):
        raise UserError(f"{key}.{TARGET}", target, f"is not a {_describe(expected)}")
    if not callable(found):
        raise UserError(f"{key}.{TARGET}", target, "is neither a class nor a function")
    arguments: dict[str, Any] = {}
    for name, value in spec.items():
        if name in (TARGET, POSITIONAL, PARTIAL):
            continue
        if str(name).startswith("_") and str(name).endswith("_"):
            reason = f"is not supported; known: {TARGET}, {POSITIONAL}, {PARTIAL}"
            raise UserError(f"{key}.{name}", value, reason)
        arguments[str(name)] = instantiate_nested(f"{key}.{name}", value)
    more = instantiate_nested(f"{key}.{POSITIONAL}", spec.get(POSITIONAL) or [])
    try:
        call = partial(found, *positional, *more, **{**given, **arguments})
        return call if spec.get(PARTIAL) else call()
    except Exception as error:
        raise UserError(key, target, f"cannot be instantiated: {summarize(error)}") from error


def instantiate_nested(key: str, value: Any) -> Any:
    """Return a value of a config in which every mapping with a `_target_` is replaced by what it describes."""
    if isinstance(value, dict):
        if TARGET in value:
            return instantiate_target(key, value)
        return {name: instantiate_nested(f"{key}.{name}", item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [instantiate_nested(f"{key}.{index}", item) for index, item in enumerate(value)]
    return value


def find_object(key: str, target: str) -> Any:
    """Import what a dotted path names.

    Raises:
        UserError: If there is nothing of that name, or its module cannot be imported.
    """
    try:
        return _resolve(target)
    except Exception as error:  # the modules that it imports may raise anything
        reason = (
            f"there is no such class ({summarize(error)}); its package must be installed or in PYTHONPATH "
            "(`python -m growlm.train` also finds those in the current folder)"
        )
        raise UserError(key, target, reason) from error


def _resolve(target: str) -> Any:
    """Import the longest part of a dotted path that is a module, and look the rest up in it."""
    parts = target.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        try:
            module = import_module(name)
        except ModuleNotFoundError as error:
            if length == 1 or error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, and imports one that is not
            continue
        return reduce(getattr, parts[length:], module)
    raise ModuleNotFoundError("it is empty")


def summarize(error: Exception) -> str:
    """Return an error as one line, with the type of it if it has no text."""
    text = str(error.__cause__ or error).strip()
    return " ".join(text.split()) or type(error).__name__


def _describe(expected: type[Any]) -> str:
    package = expected.__module__.partition(".")[0]
    kind = {"lightning": "Lightning ", "torch": "torch "}.get(package, "")
    return f"{kind}{expected.__name__}"
