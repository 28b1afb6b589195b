"""Escape text so that OmegaConf does not interpolate `${` in it."""

from __future__ import annotations

import re
from dataclasses import replace

from growlm.config.schema import RunConfig


def escape_interpolations(text: str) -> str:
    """Escape a text so that resolving it returns the text itself: no `${key}` in it is looked up.

    The text `???` cannot be escaped: OmegaConf rejects it as a missing value.
    """
    return re.sub(r"(\\*)\$\{", lambda found: rf"{found[1] * 2}\${{", text)


def escape_prompt_interpolations(config: RunConfig) -> RunConfig:
    """Return a config whose sample prompt, the one free text that may hold `${`, is escaped for OmegaConf."""
    callbacks = config.callbacks
    prompt = escape_interpolations(callbacks.sample_prompt)
    return replace(config, callbacks=replace(callbacks, sample_prompt=prompt))
