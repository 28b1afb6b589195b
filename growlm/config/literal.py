"""Text that OmegaConf hands back as it was given, with `${` in it too."""

from __future__ import annotations

import re
from dataclasses import replace

from growlm.config.schema import RunConfig


def escape_interpolations(text: str) -> str:
    """Text as OmegaConf has to be given it, so that resolving gives it back: no `${key}` in it is looked up.

    One text has no such form: `???` alone is a value that is missing, and refused as that.
    """
    return re.sub(r"(\\*)\$\{", lambda found: rf"{found[1] * 2}\${{", text)


def escape_prompt_interpolations(config: RunConfig) -> RunConfig:
    """A config as it is given to OmegaConf: its one text that may hold `${` comes back as it is."""
    callbacks = config.callbacks
    prompt = escape_interpolations(callbacks.sample_prompt)
    return replace(config, callbacks=replace(callbacks, sample_prompt=prompt))
