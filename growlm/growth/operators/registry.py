"""Register growth operators under the names that YAML and JSON use, and find them there.

Packages add operators with an entry point of the group `growlm.operators`: its name is the operator's, and what it
points to is the class or its module, which registers it. docs/own_operators.md has the contract.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from growlm.growth.operators.plain_fields import (
    check_field_types,
    check_field_values,
    format_type,
    get_field_types,
    has_type,
)
from growlm.runtime.errors import UserError
from growlm.runtime.field_limits import check_limits

if TYPE_CHECKING:
    from growlm.growth.grow_model import Operator

OperatorT = TypeVar("OperatorT")

ENTRY_POINT_GROUP = "growlm.operators"
_NAME_PATTERN = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class RegisteredOperator:
    """An operator class, and what it was registered with."""

    name: str
    operator_class: type[Any]
    order: int

    @property
    def description(self) -> str:
        """The first line of the class's docstring; empty if it has none."""
        text = inspect.cleandoc(self.operator_class.__doc__ or "").partition("\n")[0]
        # A dataclass without a docstring gets its signature for one.
        return "" if text.startswith(f"{self.operator_class.__name__}(") else text


_REGISTERED: dict[str, RegisteredOperator] = {}


class UnknownOperatorError(UserError):
    """Error raised for the name of an operator that is not installed or cannot be used."""

    def __init__(self, name: str) -> None:
        super().__init__("operator", name, explain_unknown_operator(name))


def register_operator(
    name: str, *, order: int = 100
) -> Callable[[type[OperatorT]], type[OperatorT]]:
    """Return a class decorator that registers a dataclass as the growth operator of a name.

    Args:
        name: Name in plans, commands and files: lower-case letters, digits and `_`.
        order: Position among the operators when a growth is inferred from two models; those of the same position
            follow by name.

    Raises:
        ValueError: If the name is not allowed, or another class has it.
        TypeError: If the class is not a dataclass with a method `change`, or a field is not plain data.
    """
    if not _NAME_PATTERN.fullmatch(name):
        raise ValueError(f"operator {name!r}: must match {_NAME_PATTERN.pattern}")

    def register(operator_class: type[OperatorT]) -> type[OperatorT]:
        shown = _full_name(operator_class)
        if "__dataclass_fields__" not in vars(operator_class):
            raise TypeError(
                f"{shown}: must be a dataclass; put @dataclass below @register_operator"
            )
        if not callable(getattr(operator_class, "change", None)):
            raise TypeError(f"{shown}: needs a method change(config) that returns a GrowthSpec")
        check_field_types(operator_class)
        other = _REGISTERED.get(name)
        # A class of the same name is the same one, from a module or a notebook's cell that ran again.
        if other is not None and _full_name(other.operator_class) != shown:
            both = f"{_full_name(other.operator_class)} and {shown}"
            raise ValueError(f"operator {name!r}: {both} both register it; rename one of them")
        for each in _REGISTERED.values():
            if each.operator_class is operator_class and each.name != name:
                raise ValueError(f"operator {name!r}: {shown} is registered as {each.name} already")
        _REGISTERED[name] = RegisteredOperator(name, operator_class, order)
        return operator_class

    return register


def _full_name(operator_class: type[Any]) -> str:
    return f"{operator_class.__module__}.{operator_class.__qualname__}"


def available_operators() -> dict[str, RegisteredOperator]:
    """Return all operators that can be used, those of installed packages too, in their order."""
    broken = find_broken_entry_points()
    usable = [each for each in _REGISTERED.values() if each.name not in broken]
    return {each.name: each for each in sorted(usable, key=lambda each: (each.order, each.name))}


@cache
def find_broken_entry_points() -> Mapping[str, str]:
    """Import what the entry points name, once, and return why those that failed did, by name.

    A failure is reported where the name is used, and nowhere else.
    """
    found = entry_points(group=ENTRY_POINT_GROUP)
    problems: dict[str, str] = {}
    for entry_point in sorted(found, key=lambda each: (each.name, each.value)):
        try:
            entry_point.load()
            if entry_point.name not in _REGISTERED:
                raise LookupError(f"registers no operator named {entry_point.name}")
        except (Exception, SystemExit) as error:  # a module may raise anything as it is imported
            reason = " ".join(str(error).split()) or "no message"
            problems[entry_point.name] = (
                f"{_describe_entry_point(entry_point)} fails: {type(error).__name__}: {reason}"
            )
    return problems


def _describe_entry_point(entry_point: EntryPoint) -> str:
    package = entry_point.dist
    of = f"of {package.name} {package.version}" if package is not None else "of an unnamed package"
    return f"the entry point {entry_point.name} = {entry_point.value} {of}"


def get_operator_class(name: str) -> type[Operator]:
    """Return the class of an operator's name.

    Raises:
        UnknownOperatorError: If no such operator is installed, or its entry point cannot be loaded.
    """
    found = available_operators().get(name)
    if found is None:
        raise UnknownOperatorError(name)
    return found.operator_class


def explain_unknown_operator(name: str) -> str:
    """Return why there is no operator of a name, and what there is."""
    broken = find_broken_entry_points()
    if name in broken:
        return broken[name]
    known = list(available_operators())
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}."
    reason = (
        f"there is no such operator; {hint} Others come with packages that have an entry point in the group "
        f"{ENTRY_POINT_GROUP}"
    )
    return reason + "".join(f"; {problem}" for problem in broken.values())


def find_operator_name(operator: Operator) -> str | None:
    """Return the name that an operator's class is registered under; None if it is not."""
    names = (each.name for each in _REGISTERED.values() if each.operator_class is type(operator))
    return next(names, None)


def operators_to_dicts(operators: Sequence[Operator]) -> list[dict[str, Any]]:
    """Return the operators' names and settings in order, as plain JSON values.

    Raises:
        UserError: If an operator is not registered, or a field is not plain data.
    """
    return [_to_dict(operator) for operator in operators]


def _to_dict(operator: Operator) -> dict[str, Any]:
    name = find_operator_name(operator)
    shown = type(operator).__qualname__
    if name is None:
        reason = (
            "is not registered, so it has no name to be written down under; decorate the class with "
            '@register_operator("name") from growlm.growth'
        )
        raise UserError("operators", shown, reason)
    try:
        check_field_values(operator)
    except TypeError as error:
        raise UserError("operators", name, str(error)) from error
    return {name: dataclasses.asdict(operator)}  # type: ignore[call-overload]


def operators_from_dicts(data: Sequence[dict[str, Any]]) -> list[Operator]:
    """Return the operators that `operators_to_dicts` described.

    Raises:
        UnknownOperatorError: If an operator is not installed.
        UserError: If an operator has no such setting, or it is of another type or beyond its limits.
        TypeError: If the data is not of this form.
    """
    return [_from_dict(name, settings) for entry in data for name, settings in entry.items()]


def _from_dict(name: str, settings: dict[str, Any]) -> Operator:
    operator_class: Any = get_operator_class(name)
    known = get_field_types(operator_class)
    for key, value in settings.items():
        if key not in known:
            reason = f"the operator has no such setting; known: {', '.join(known)}"
            raise UserError(f"{name}.{key}", value, reason)
        if not has_type(value, known[key]):
            reason = f"must be of type {format_type(known[key])}"
            raise UserError(f"{name}.{key}", value, reason)
    operator: Operator = operator_class(**settings)
    check_limits(operator, name)
    return operator
