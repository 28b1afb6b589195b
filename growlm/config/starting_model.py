"""Fill in the first phase's model config from the folder of a pretrained model (`model=pretrained`)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from growlm.huggingface.pretrained import open_pretrained
from growlm.runtime.errors import UserError

OVERRIDABLE_FIELDS = (
    "max_seq_len",
    "router_balance_weight",
    "router_z_weight",
    "router_tie_breaking",
)
"""Fields that may differ from the folder's, because they change no weight."""


def fill_from_checkpoint(model: DictConfig) -> None:
    """Set every missing field of `model` to its value in the folder `model.path`, if there is one.

    Raises:
        UserError: If the folder has no model, or a field is set that only growth may change.
    """
    if model.path is None:
        if any(OmegaConf.is_missing(model, name) for name in model):
            reason = (
                "model=pretrained needs the folder of a Hugging Face model or a growlm checkpoint"
            )
            raise UserError("model.path", "null", reason)
        return
    pretrained = open_pretrained(Path(model.path).expanduser(), "model.path")
    for name, value in asdict(pretrained.config).items():
        if OmegaConf.is_missing(model, name):
            model[name] = value
        elif model[name] != value and name not in OVERRIDABLE_FIELDS:
            reason = (
                f"the model in {model.path} has {value}; leave it unset, only growth can change it"
            )
            raise UserError(f"model.{name}", model[name], reason)
