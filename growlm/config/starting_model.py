"""Fill in the first phase's model config from the folder of a pretrained model (`model=pretrained`)."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

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


def fill_from_checkpoint(model: DictConfig) -> None:
    """Set every missing field of `model`: to its value in the folder `model.path`, or, of a part, to its default.

    Raises:
        UserError: If the folder has no model, or a field is set that only growth may change.
    """
    paths = field_paths(_DEFAULTS)
    if model.path is None:
        if any(_is_missing(model, path) for path in paths if "." not in path):
            reason = (
                "model=pretrained needs the folder of a Hugging Face model or a growlm checkpoint"
            )
            raise UserError("model.path", "null", reason)
        for path in paths:
            if _is_missing(model, path):
                OmegaConf.update(model, path, get_field(_DEFAULTS, path))
        return
    pretrained = open_pretrained(Path(model.path).expanduser(), "model.path")
    for path in paths:
        value = get_field(pretrained.config, path)
        if _is_missing(model, path):
            OmegaConf.update(model, path, value)
        elif (given := OmegaConf.select(model, path)) != value and path not in OVERRIDABLE_FIELDS:
            reason = (
                f"the model in {model.path} has {value}; leave it unset, only growth can change it"
            )
            raise UserError(f"model.{path}", given, reason)


def _is_missing(model: DictConfig, path: str) -> bool:
    parent, _, name = path.rpartition(".")
    return OmegaConf.is_missing(OmegaConf.select(model, parent) if parent else model, name)
