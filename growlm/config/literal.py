"""Escape text, so that Hydra and OmegaConf take it literally."""

from __future__ import annotations

import re
from dataclasses import replace

from growlm.config.schema import RunConfig


def escape_interpolations(text: str) -> str:
    """Escape a text so that resolving it returns the text itself: no `${key}` in it is looked up.

    The text `???` cannot be escaped: OmegaConf rejects it as a missing value.
    """
    return re.sub(r"(\\*)\$\{", lambda found: rf"{found[1] * 2}\${{", text)


def quote_for_hydra(text: str) -> str:
    """Quote a text for Hydra's grammar, so that no character in it has a special meaning there."""
    # Hydra treats a backslash as an escape only before a quote, including the closing one.
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"


def escape_prompt_interpolations(config: RunConfig) -> RunConfig:
    """Return a config whose sample prompt, the one free text that may hold `${`, is escaped for OmegaConf."""
    callbacks = config.callbacks
    prompt = escape_interpolations(callbacks.sample_prompt)
    return replace(config, callbacks=replace(callbacks, sample_prompt=prompt))
