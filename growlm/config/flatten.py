"""A nested config as its full keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield `(full key, value)` of everything that is no filled dictionary."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flat(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
