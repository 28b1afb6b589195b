"""Keep torchao's notices about itself off the screen, whoever imports it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def suppress_torchao_notices() -> Iterator[None]:
    """Drop what torchao says of itself when it is imported and first compiled; everything else is shown.

    transformers imports it together with its first model class, where it is installed.
    """

    def is_worth_saying(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        kernels_for_gpus = said.startswith("Failed to load ") and "/torchao/" in said
        return not (kernels_for_gpus or "Calling register_constant() on Enum subclasses" in said)

    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    for logger in loggers:
        logger.addFilter(is_worth_saying)
    try:
        with warnings.catch_warnings():
            for hint in (
                r"`torch\.jit\.script_method` is deprecated",
                "OptimState8bit does not implement _stable_hash_for_caching",
            ):
                warnings.filterwarnings("ignore", hint)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_worth_saying)
