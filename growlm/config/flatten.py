"""Flatten a nested config to its full dotted keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def flatten_config(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield `(full key, value)` for every leaf of a nested config; empty dictionaries are leaves."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flatten_config(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
