"""Convert operators to and from the names and settings used in YAML and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from growlm.growth.grow_model import Operator
from growlm.growth.operators.deepen import Deepen
from growlm.growth.operators.multiply_experts import MultiplyExperts
from growlm.growth.operators.upcycle import Upcycle
from growlm.growth.operators.widen import Widen

OPERATORS = {
    "upcycle": Upcycle,
    "widen": Widen,
    "deepen": Deepen,
    "multiply_experts": MultiplyExperts,
}


def operators_to_dicts(operators: Sequence[Operator]) -> list[dict[str, Any]]:
    """Return the operators' names and settings in order, as plain JSON values.

    Raises:
        KeyError: If an operator is not in `OPERATORS`.
    """
    names = {operator_class: name for name, operator_class in OPERATORS.items()}
    return [{names[type(o)]: asdict(o)} for o in operators]  # type: ignore[call-overload]


def operators_from_dicts(data: Sequence[dict[str, Any]]) -> list[Operator]:
    """Return the operators that `operators_to_dicts` described.

    Raises:
        KeyError: If a name is unknown.
        TypeError: If a setting is unknown.
    """
    return [OPERATORS[name](**settings) for entry in data for name, settings in entry.items()]
