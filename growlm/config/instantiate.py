"""Instantiate classes that a config names under `_target_`, with the keys beside it as arguments.

A class of the user's own command line or files is trusted; `growlm/config/trusted_targets.py` checks those of a
resumed run before anything here is called.
"""

from __future__ import annotations

import difflib
import inspect
from functools import partial
from importlib import import_module
from typing import Any

from growlm.config.own_classes import TARGET
from growlm.runtime.errors import UserError

POSITIONAL, PARTIAL = "_args_", "_partial_"
MUST_BE_PATH = "must be MODULE.CLASS, as in an import"


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
        spec: Mapping with `_target_`, and as Hydra has it `_args_`.
        expected: Class that it must be a subclass of; None for any class or function.
        positional: Arguments that growlm gives it, before those of `_args_`.
        given: Further arguments that growlm gives it.

    Raises:
        UserError: If there is no such class, it is of another kind, or it cannot be instantiated.
    """
    return _call(key, spec, check_target(key, spec, expected), positional, given)


def instantiate_nested(key: str, value: Any) -> Any:
    """Return a value of a config in which every mapping with a `_target_` is replaced by what it describes.

    There, `_partial_: true` gives a function with some arguments set, as Hydra has it.
    """
    if isinstance(value, dict):
        if TARGET in value:
            plain = {name: item for name, item in value.items() if name != PARTIAL}
            return _call(key, value, check_target(key, plain), (), {})
        return {name: instantiate_nested(f"{key}.{name}", item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [instantiate_nested(f"{key}.{index}", item) for index, item in enumerate(value)]
    return value


def check_target(key: str, spec: Any, expected: type[Any] | None = None) -> Any:
    """Return the class or function that a spec names; check its kind and the names of its arguments.

    Raises:
        UserError: If there is no such class, it is of another kind, or it has no such argument.
    """
    if not isinstance(spec, dict) or spec.get(TARGET) is None:
        raise UserError(key, spec, _explain_missing_target(key, spec))
    target = str(spec[TARGET])
    found = find_object(f"{key}.{TARGET}", target)
    if expected is not None:
        check_kind(key, target, found, expected)
    if not callable(found):
        raise UserError(f"{key}.{TARGET}", target, "is neither a class nor a function")
    if spec.get(PARTIAL):
        kind = "is never called" if expected is None else f"is not a {_describe(expected)}"
        reason = f"makes it a function, which {kind}; leave it out"
        raise UserError(f"{key}.{PARTIAL}", spec[PARTIAL], reason)
    for name in _list_names(spec):
        if name.startswith("_") and name.endswith("_"):
            reason = f"is not supported; known: {TARGET}, {POSITIONAL}, {PARTIAL}"
            raise UserError(f"{key}.{name}", spec[name], reason)
    _check_names(key, spec, found)
    return found


def check_kind(key: str, target: str, found: Any, expected: type[Any]) -> None:
    """Check that what `_target_` names is a class of the expected kind.

    Raises:
        UserError: If it is not.
    """
    if isinstance(found, type) and issubclass(found, expected):
        return
    reason = f"is not a {_describe(expected)}"
    if inspect.ismodule(found):
        reason += ", but a module; name a class in it"
    elif inspect.isroutine(found):
        reason += ", but a function; name a class"
    raise UserError(f"{key}.{TARGET}", target, reason)


def read_arguments(key: str, spec: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and the named arguments of a spec, with nested classes instantiated."""
    named = {name: instantiate_nested(f"{key}.{name}", spec[name]) for name in _list_names(spec)}
    return instantiate_nested(f"{key}.{POSITIONAL}", spec.get(POSITIONAL) or []), named


def _call(
    key: str, spec: dict[str, Any], found: Any, positional: tuple[Any, ...], given: dict[str, Any]
) -> Any:
    more, named = read_arguments(key, spec)
    try:
        call = partial(found, *positional, *more, **{**given, **named})
        return call if spec.get(PARTIAL) else call()
    except Exception as error:
        reason = f"cannot be instantiated: {summarize(error)}"
        raise UserError(key, spec[TARGET], reason) from error


def _list_names(spec: dict[str, Any]) -> list[str]:
    return [name for name in spec if name not in (TARGET, POSITIONAL, PARTIAL)]


def _check_names(key: str, spec: dict[str, Any], found: Any) -> None:
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # some classes written in C have none
        return
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return
    known = [
        each.name
        for each in parameters
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]
    for name in _list_names(spec):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none'}"
            reason = f"{spec[TARGET]} has no such argument; {hint}"
            raise UserError(f"{key}.{name}", spec[name], reason)


def _explain_missing_target(key: str, spec: Any) -> str:
    parent, _, last = key.rpartition(".")
    if last == TARGET:
        return f"give it a name: {parent}.NAME.{TARGET}={spec}"
    if isinstance(spec, str) and spec:
        return f"needs {key}.{TARGET}={spec}"
    return f"needs a {TARGET}: the class to instantiate"


def find_object(key: str, target: str) -> Any:
    """Import what a dotted path names.

    Raises:
        UserError: If there is nothing of that name, or its module cannot be imported.
    """
    try:
        if not all(part.isidentifier() for part in target.split(".")):
            raise UserError(key, target, MUST_BE_PATH)
        return _resolve(target)
    except UserError:
        raise
    except _MissingAttributeError as error:
        raise UserError(key, target, f"there is no such class: {error}") from error
    except Exception as error:  # the modules that it imports may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == target and "." not in target:
            raise UserError(key, target, MUST_BE_PATH) from error
        if not _is_missing(error, target):
            raise UserError(key, target, f"cannot be imported: {summarize(error)}") from error
        reason = (
            f"there is no such class ({summarize(error)}); its package must be installed or in PYTHONPATH "
            "(`python -m growlm.train` also finds those in the current folder)"
        )
        raise UserError(key, target, reason) from error


def _is_missing(error: Exception, target: str) -> bool:
    """Return whether an error says that a package of the target is missing, not one that its code imports."""
    return isinstance(error, ModuleNotFoundError) and (
        error.name is None or f"{target}.".startswith(f"{error.name}.")
    )


class _MissingAttributeError(AttributeError):
    """Error raised when a module or class has no attribute of a name."""


def _resolve(target: str) -> Any:
    """Import the longest part of a dotted path that is a module, and look the rest up in it."""
    parts = target.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        try:
            found = import_module(name)
        except ModuleNotFoundError as error:
            if length == 1 or error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, and imports one that is not
            continue
        for index in range(length, len(parts)):
            found = _look_up(found, ".".join(parts[:index]), parts[index])
        return found
    raise ModuleNotFoundError("it is empty")


def _look_up(owner: Any, path: str, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        near = difflib.get_close_matches(name, dir(owner), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise _MissingAttributeError(f"{path} has no {name}{hint}") from error


def summarize(error: Exception) -> str:
    """Return an error as one line, with the type of it if it has no text."""
    text = str(error.__cause__ or error).strip()
    return " ".join(text.split()) or type(error).__name__


def _describe(expected: type[Any]) -> str:
    package = expected.__module__.partition(".")[0]
    kind = {"lightning": "Lightning ", "torch": "torch "}.get(package, "")
    return f"{kind}{expected.__name__}"
