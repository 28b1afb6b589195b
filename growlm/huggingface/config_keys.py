"""The keys of a `config.json`, and messages that name them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from growlm.runtime.errors import UserError
from growlm.storage.typed_values import truncate_text

CONFIG_NAME = "config.json"
DERIVED_KEYS = ("num_key_value_heads", "head_dim")
"""Keys that may be null: what they say then follows from the others."""


class ConfigReader:
    """What a `config.json` says.

    Args:
        folder: For messages.
        content: Of the file.
        defaults: What transformers takes where a key is absent.
    """

    def __init__(
        self, folder: Path, content: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.folder, self.content, self.defaults = folder, content, defaults or {}

    def get(self, name: str) -> Any:
        """A key's value, or what transformers takes without it."""
        return self.content.get(name, self.defaults.get(name))

    def get_agreed(self, names: list[str]) -> Any:
        """The value that all these keys have."""
        values = [self._get_required(name) for name in names]
        for name, value in zip(names, values, strict=True):
            if value != values[0]:
                self.raise_error(name, value, f"must be as {names[0]}={values[0]}")
        return values[0]

    def _get_required(self, name: str) -> Any:
        value = self.get(name)
        if value is None and name not in DERIVED_KEYS:
            value = self.defaults.get(name)
            if value is None:
                self.raise_error(name, None, "must be given")
        return value

    def get_token_ids(self, name: str) -> int | list[int] | None:
        """The value of a key that names one token, several, or none."""
        value = self.get(name)
        each = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(one) is int for one in each):
            self.raise_error(name, value, "must be null, an id or a list of ids")
        return value

    def check_allowed(self, name: str, allowed: tuple[Any, ...]) -> None:
        """Check a key that only some values are known of."""
        value = self.get(name)
        if not any(value == each and type(value) is type(each) for each in allowed):
            words = " or ".join("null" if each is None else str(each) for each in allowed)
            self.raise_error(name, value, f"must be {words}")

    def raise_error(self, name: str, value: Any, reason: str) -> NoReturn:
        """Raise the error about a key."""
        shown = "null" if value is None else truncate_text(str(value))
        raise UserError(f"{self.folder / CONFIG_NAME}: {name}", shown, reason)
