"""Find the value of a column in a row, also inside nested ones, and select rows by their values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from growlm.runtime.errors import UserError

COMPARISON_PATTERN = re.compile(r"\s*(==|!=|>=|<=|>|<)\s*(.*?)\s*", re.DOTALL)
MAX_LISTED_COLUMNS = 10
MAX_COLUMN_CHARACTERS = 40
"""Length at which a column's name is cut in a message: without a header, it is a row's text."""


class MissingColumnError(LookupError):
    """A row lacks a column; the message says which, and what there is."""


def describe_missing_column(columns: Sequence[str]) -> str:
    """Return that there is no such column, and the first of those there are."""
    return f"no such column; its columns are: {list_columns(columns)}"


def list_columns(columns: Sequence[str]) -> str:
    """Return the first columns' names, cut to a readable length."""
    names = [
        name if len(name) <= MAX_COLUMN_CHARACTERS else f"{name[:MAX_COLUMN_CHARACTERS]}…"
        for name in columns[:MAX_LISTED_COLUMNS]
    ]
    more = len(columns) - len(names)
    return (", ".join(names) or "none") + (f" and {more:,} more" if more else "")


def find_root(column: str, columns: Sequence[str]) -> str:
    """Return which of a table's columns has the value of a column: itself, or the first part of a dotted path.

    Raises:
        MissingColumnError: If there is none, or more than one of the name.
    """
    root = column if column in columns else column.partition(".")[0]
    if root not in columns:
        raise MissingColumnError(describe_missing_column(columns))
    if columns.count(root) > 1:
        raise MissingColumnError(f"{columns.count(root)} columns of this name; rename all but one")
    return root


def get_value(row: Mapping[str, Any], column: str) -> Any:
    """Return a row's value of a column, or of what a dotted path leads to: `messages.0.content`.

    A path's numbers are positions in lists, from the end if they are negative.

    Returns:
        The value; None if the path leads through a null, or behind a list's end.

    Raises:
        MissingColumnError: If there is no such column or key.
    """
    if column in row:
        return row[column]
    first, *rest = column.split(".")
    if first not in row:
        raise MissingColumnError(describe_missing_column(list(row)))
    value, path = row[first], first
    for part in rest:
        if value is None:
            return None
        if isinstance(value, Mapping):
            if part not in value:
                raise MissingColumnError(f"no {part} in {path}, only: {list_columns(list(value))}")
            value = value[part]
        elif isinstance(value, list):
            if not part.removeprefix("-").isdecimal():
                raise MissingColumnError(
                    f"a list in {path}, where {part} must be a position: the first is {path}.0"
                )
            position = int(part)
            value = value[position] if -len(value) <= position < len(value) else None
        else:
            raise MissingColumnError(f"a {type(value).__name__} in {path}, which has no {part}")
        path = f"{path}.{part}"
    return value


class RowFilter:
    """Conditions on the values of columns, all of which a row must meet.

    A value is compared as a number with a number, and as text with anything else.

    Args:
        conditions: By column (also nested): a value, null for rows without one, text that begins with `==`, `!=`,
            `>=`, `<=`, `>` or `<`, or a list of these, of which a row must meet one.
        key: Setting of the conditions, for error messages.

    Raises:
        UserError: If a condition has none of these forms.
    """

    def __init__(self, conditions: Mapping[str, Any], key: str) -> None:
        self.key = key
        self.columns = tuple(conditions)
        self._tests = {
            column: _make_test(condition, f"{key}.{column}")
            for column, condition in conditions.items()
        }

    def accepts(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row meets all conditions; what it lacks counts as null."""
        return all(test(_get_value_or_none(row, column)) for column, test in self._tests.items())


def _get_value_or_none(row: Mapping[str, Any], column: str) -> Any:
    try:
        return get_value(row, column)
    except MissingColumnError:
        return None


def _make_test(condition: Any, key: str) -> Callable[[Any], bool]:
    """Return the function that tests a value."""
    if isinstance(condition, list | tuple):
        if not condition:
            raise UserError(key, condition, "needs at least one value")
        tests = [_make_test(value, key) for value in condition]
        return lambda value: any(test(value) for test in tests)
    match = COMPARISON_PATTERN.fullmatch(condition) if isinstance(condition, str) else None
    if match is None:
        return _make_equality(condition, key)
    operator, operand = match.groups()
    bound = _to_number(operand)
    if operator in ("==", "!="):
        equals = _make_equality(operand if bound is None else bound, key)
        return equals if operator == "==" else lambda value: not equals(value)
    if bound is None:
        raise UserError(key, condition, f"{operator} must be followed by a number")
    compare: Callable[[float], bool] = {
        ">=": lambda number: number >= bound,
        "<=": lambda number: number <= bound,
        ">": lambda number: number > bound,
        "<": lambda number: number < bound,
    }[operator]

    def test(value: Any) -> bool:
        number = _to_number(value)
        return number is not None and compare(number)

    return test


def _make_equality(wanted: Any, key: str) -> Callable[[Any], bool]:
    if wanted is None:
        return lambda value: value is None or value == ""
    if isinstance(wanted, Mapping):
        raise UserError(key, wanted, "must be a value, a list of values, or a comparison")
    if isinstance(wanted, bool):
        return lambda value: _to_text(value).lower() == _to_text(wanted)
    if isinstance(wanted, int | float):
        return lambda value: _to_number(value) == wanted
    return lambda value: value is not None and _to_text(value) == wanted


def _to_number(value: Any) -> int | float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _to_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
