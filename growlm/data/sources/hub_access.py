"""Whether the Hugging Face hub answers, and what its libraries say when it does not."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HUB_TIMEOUT_S = 10.0


def is_connection_error(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is of the network; libraries wrap it in many ways."""
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
    """Ask the hub once, for a bounded time; without an answer, have the libraries use their cache at once.

    They would ask again and again: for half a minute where there is no network, and where a firewall swallows what
    is sent, for minutes.
    """
    import huggingface_hub

    settings: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in settings]
    if name is not None and not any(before):
        try:
            huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=HUB_TIMEOUT_S)
        except (
            Exception
        ) as error:  # of several libraries; what the hub answered is said when loading
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
    """No warnings beside the one message, and bars only where somebody watches."""
    logger = logging.getLogger("huggingface_hub")
    level, verbosity = logger.level, datasets.logging.get_verbosity()
    shown = datasets.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    datasets.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        datasets.logging.set_verbosity(verbosity)
        if shown:
            datasets.enable_progress_bars()
