"""Detect a W&B login without importing wandb."""

from __future__ import annotations

import netrc
import os
from urllib.parse import urlparse

DEFAULT_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""The addresses of W&B's own server: that of releases before 0.31, and that since."""


def has_wandb_login(base_url: str | None = None) -> bool:
    """Return whether W&B finds an API key, in the environment or in the netrc file that `wandb login` writes.

    Args:
        base_url: Address of the server; by default WANDB_BASE_URL, or else W&B's own.
    """
    return bool(os.environ.get("WANDB_IDENTITY_TOKEN_FILE")) or find_api_key(base_url) is not None


def find_api_key(base_url: str | None = None) -> str | None:
    """Return the API key that W&B finds; None if there is none."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    address = base_url or os.environ.get("WANDB_BASE_URL")
    hosts: tuple[str, ...] = DEFAULT_HOSTS
    if address is not None:
        parsed = urlparse(address)
        if parsed.hostname not in DEFAULT_HOSTS:
            hosts = tuple(host for host in (parsed.netloc, parsed.hostname) if host)
    try:
        found = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return None
    for host in hosts:
        if (entry := found.authenticators(host)) and entry[2]:
            return entry[2]
    return None
