"""A switch for tracing a model on fake tensors, which have shapes and no values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_is_tracing = False


def is_tracing() -> bool:
    """Return whether a model is being traced, so that nothing may depend on values."""
    return _is_tracing


@contextmanager
def tracing() -> Iterator[None]:
    """Let models run on fake tensors: without reading values, and with few blocks of the loss.

    Traced are the operations and the memory of a pass, not its results: a grouped product is one product of all
    rows, because torch's fake `grouped_mm` supports half precision only, and no rows are padded.
    """
    global _is_tracing
    before, _is_tracing = _is_tracing, True
    try:
        yield
    finally:
        _is_tracing = before
