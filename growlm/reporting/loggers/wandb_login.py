"""Detect a W&B login without importing wandb."""

from __future__ import annotations

import netrc
import os
from urllib.parse import urlparse


def has_wandb_login() -> bool:
    """Return whether W&B finds an API key in the environment or in the netrc file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return host is not None and netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
