"""Read keys of a Hugging Face `config.json`, with errors that name the key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from growlm.runtime.errors import UserError
from growlm.storage.typed_values import truncate_text

CONFIG_NAME = "config.json"
NULLABLE_KEYS = (
    "num_key_value_heads",
    "head_dim",
    "n_inner",
    "num_kv_heads",
    "ffn_hidden_size",
    "expert_d_ff",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
"""Keys that may be null: their values are then derived from other keys, or there is no such thing."""


class ConfigReader:
    """Reader for the keys of a `config.json`.

    Args:
        folder: Folder of the file, for messages.
        content: Parsed content of the file.
        defaults: Values that transformers uses where a key is absent.
    """

    def __init__(
        self, folder: Path, content: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.folder, self.content, self.defaults = folder, content, defaults or {}

    def get(self, name: str) -> Any:
        """Return a key's value, or transformers' default where it is absent."""
        return self.content.get(name, self.defaults.get(name))

    def get_agreed(self, names: list[str], value_names: Mapping[Any, Any] | None = None) -> Any:
        """Return the value that all the keys have in common.

        Args:
            names: Keys.
            value_names: growlm's value for each of theirs, where it differs. For keys that need not agree: for
                each tuple of their values.

        Raises:
            UserError: If their values differ, or one has none.
        """
        values = [self._get_required(name) for name in names]
        if value_names is not None and all(isinstance(each, tuple) for each in value_names):
            self._check_together(names, values, list(value_names))
            return value_names[tuple(values)]
        for name, value in zip(names, values, strict=True):
            if value != values[0]:
                self.raise_error(name, value, f"must be the same as {names[0]}={values[0]}")
        if value_names is None:
            return values[0]
        self.check_allowed(names[0], tuple(value_names))
        return value_names[values[0]]

    def _check_together(
        self, names: list[str], values: list[Any], allowed: list[tuple[Any, ...]]
    ) -> None:
        """Check that the values of some keys are one of the allowed tuples; each alone, then with those before."""
        for i, name in enumerate(names):
            fitting = [each[i] for each in allowed if each[:i] == tuple(values[:i])]
            if not any(values[i] == each and type(values[i]) is type(each) for each in fitting):
                choices = " or ".join(dict.fromkeys(map(str, fitting)))
                given = " and ".join(f"{n} is {v}" for n, v in zip(names[:i], values, strict=False))
                where = f" where {given}" if given else ""
                self.raise_error(name, values[i], f"must be {choices}{where}")

    def _get_required(self, name: str) -> Any:
        value = self.get(name)
        if value is None and name not in NULLABLE_KEYS:
            value = self.defaults.get(name)
            if value is None:
                self.raise_error(name, None, "must be given")
        return value

    def get_token_ids(self, name: str) -> int | list[int] | None:
        """Return the value of a key that holds one token id, several, or none.

        Raises:
            UserError: If it is anything else.
        """
        value = self.get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(token) is int for token in ids):
            self.raise_error(name, value, "must be null, a token id or a list of token ids")
        return value

    def check_allowed(self, name: str, allowed: tuple[Any, ...]) -> None:
        """Check that a key has one of the allowed values, of the same type.

        Raises:
            UserError: If it has another one.
        """
        value = self.get(name)
        if not any(value == each and type(value) is type(each) for each in allowed):
            choices = " or ".join("null" if each is None else str(each) for each in allowed)
            self.raise_error(name, value, f"must be {choices}")

    def raise_error(self, name: str, value: Any, reason: str) -> NoReturn:
        """Raise a `UserError` for a key."""
        shown = "null" if value is None else truncate_text(str(value))
        raise UserError(f"{self.folder / CONFIG_NAME}: {name}", shown, reason)
