"""Call the methods that an operator may have besides `change`, or use what stands in for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from growlm.growth.grow_model import Operator
from growlm.growth.operators.registry import find_operator_name, operators_from_dicts


def summarize_operator(operator: Operator) -> str:
    """Return a few words for tables, such as `+2 layers`: `operator.summarize()`, or else its name."""
    method = getattr(operator, "summarize", None)
    if method is not None:
        return str(method())
    return find_operator_name(operator) or type(operator).__qualname__


def summarize_operator_dicts(data: Sequence[Any]) -> str:
    """Summarize operators as files hold them; where one cannot be made, its name stands for it."""
    entries = (_summarize_entry(entry) for entry in data if isinstance(entry, dict))
    return ", ".join(filter(None, entries))


def _summarize_entry(entry: dict[str, Any]) -> str:
    settings = {name: value for name, value in entry.items() if isinstance(value, dict)}
    try:
        return ", ".join(map(summarize_operator, operators_from_dicts([settings])))
    except (
        Exception
    ):  # the file may be of another version, and the operator of a package that is not here
        return ", ".join(map(str, settings))


def iter_smaller_operators(operator: Operator) -> Iterable[Operator]:
    """Return the operators that grow less than this one, the largest first: `operator.smaller()`, or else none."""
    method = getattr(operator, "smaller", None)
    return () if method is None else method()


def infer_operators(operator_class: type[Operator], old: Any, new: Any) -> Iterable[Operator]:
    """Return the operators of a class that may have led from a config towards another, the likeliest first.

    They are those of `operator_class.infer(old, new)`, or else none.
    """
    method = getattr(operator_class, "infer", None)
    return () if method is None else method(old, new)
