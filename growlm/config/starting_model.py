"""Fill in the first phase's model config from the folder of a pretrained model (`model=pretrained`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from growlm.huggingface.pretrained import open_pretrained
from growlm.model.config import ModelConfig, field_paths, get_field
from growlm.runtime.errors import UserError

_DEFAULTS = ModelConfig()
OVERRIDABLE_FIELDS = (
    "max_seq_len",
    "routing.balance_weight",
    "routing.z_weight",
    "routing.tie_breaking",
)
"""Fields that may differ from the folder's, because they change no weight."""
ADDED_SIZES = ("shared_d_ff", "expert_d_ff")
"""Sizes that configs of earlier versions do not have."""


def fill_from_checkpoint(model: DictConfig) -> None:
    """Set every missing field of `model`: to its value in the folder `model.path`, or, of a part, to its default.

    Raises:
        UserError: If the folder has no model, or a field is set that only growth may change.
    """
    paths = field_paths(_DEFAULTS)
    if model.path is None:
        sizes = [path for path in paths if "." not in path and path not in ADDED_SIZES]
        if any(_is_missing(model, path) for path in sizes):
            reason = (
                "model=pretrained needs the folder of a Hugging Face model or a growlm checkpoint"
            )
            raise UserError("model.path", "null", reason)
        for path in paths:
            if _is_missing(model, path):
                _set(model, path, get_field(_DEFAULTS, path))
        return
    pretrained = open_pretrained(Path(model.path).expanduser(), "model.path")
    fixed = set(paths).difference(OVERRIDABLE_FIELDS)
    if pretrained.config.embedding.positions == "learned":
        fixed.add("max_seq_len")  # the number of rows of a weight
    for path in paths:
        value = get_field(pretrained.config, path)
        if _is_missing(model, path):
            _set(model, path, value)
        elif path in fixed and (given := _get_given(model, path)) != value:
            what = (
                "it is a size of its weights"
                if path == "max_seq_len"
                else "only growth can change it"
            )
            reason = f"the model in {model.path} has {value}; leave it unset, {what}"
            raise UserError(f"model.{path}", given, reason)


def _set(model: DictConfig, path: str, value: Any) -> None:
    OmegaConf.update(model, path, list(value) if isinstance(value, tuple) else value)


def _get_given(model: DictConfig, path: str) -> Any:
    value = OmegaConf.select(model, path)
    return tuple(value) if isinstance(value, ListConfig) else value


def _is_missing(model: DictConfig, path: str) -> bool:
    parent, _, name = path.rpartition(".")
    return OmegaConf.is_missing(OmegaConf.select(model, parent) if parent else model, name)
