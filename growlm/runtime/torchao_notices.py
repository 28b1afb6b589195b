"""Hide torchao's import-time notices."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def suppress_torchao_notices() -> Iterator[None]:
    """Hide the notices that torchao prints when it is imported and first compiled, and nothing else.

    If torchao is installed, transformers imports it together with its first model class.
    """

    def is_not_notice(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_gpu_kernel_notice = message.startswith("Failed to load ") and "/torchao/" in message
        is_enum_notice = "Calling register_constant() on Enum subclasses" in message
        return not (is_gpu_kernel_notice or is_enum_notice)

    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    for logger in loggers:
        logger.addFilter(is_not_notice)
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
            logger.removeFilter(is_not_notice)
