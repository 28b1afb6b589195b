"""A nested config as its full keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def flatten_config(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield `(full key, value)` of everything that is no filled dictionary."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flatten_config(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
