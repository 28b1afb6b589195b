"""Access to the Hugging Face hub: detecting a lost connection, offline mode, and quiet libraries."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HUB_TIMEOUT_S = 10.0
FAILED_FILE_PATTERN = re.compile(r"Failed to read file '(.+?)' with error")
"""Pattern of what the `datasets` library logs about a file that it cannot parse; its exceptions do not name it."""


def is_connection_error(error: BaseException | None) -> bool:
    """Return whether an error or any of its causes is a network error; libraries wrap these in many ways."""
    while error is not None:
        module = type(error).__module__.partition(".")[0]
        names = {cls.__name__ for cls in type(error).__mro__}
        if isinstance(error, ConnectionError | TimeoutError):
            return True
        if module.startswith(("httpx", "requests", "aiohttp")) and names & {
            "TransportError",
            "ConnectionError",
            "Timeout",
            "ClientError",
        }:
            return True
        if names & {"OfflineModeIsEnabled", "LocalEntryNotFoundError"}:
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def offline_if_unreachable(datasets: Any, name: str | None, revision: str | None) -> Iterator[None]:
    """Ask the hub once, with a timeout; if it does not answer, make the libraries use their cache.

    Otherwise they retry: for half a minute without a network, and for minutes behind a firewall that drops
    packets.
    """
    import huggingface_hub

    settings: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in settings]
    if name is not None and not any(before):
        try:
            huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=HUB_TIMEOUT_S)
        except Exception as error:  # of several libraries; other errors are reported on loading
            if is_connection_error(error):
                for module in settings:
                    module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(settings, before, strict=True):
            module.HF_HUB_OFFLINE = value


@contextmanager
def suppress_hub_output(datasets: Any) -> Iterator[None]:
    """Silence the libraries' warnings, and show progress bars only on a terminal."""
    logger = logging.getLogger("huggingface_hub")
    level, verbosity = logger.level, datasets.logging.get_verbosity()
    had_progress_bars = datasets.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    datasets.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        datasets.logging.set_verbosity(verbosity)
        if had_progress_bars:
            datasets.enable_progress_bars()


@contextmanager
def capture_failed_files() -> Iterator[list[str]]:
    """Collect the names of files that the `datasets` library logs as unreadable, instead of printing them."""
    logger, names = logging.getLogger("datasets"), list[str]()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            names.extend(FAILED_FILE_PATTERN.findall(record.getMessage()))

    handlers, logger.handlers = logger.handlers, [Collector(logging.ERROR)]
    try:
        yield names
    finally:
        logger.handlers = handlers
