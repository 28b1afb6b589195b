"""`model=pretrained`: the shape of the first phase's model comes from a folder."""

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
"""Fields that change no weight."""


def fill_from_checkpoint(model: DictConfig) -> None:
    """Give every field of `model` that is not set its value in the folder `model.path`, if there is one.

    Raises:
        UserError: If the folder holds no model, or a field is set that only growth may change.
    """
    if model.path is None:
        if any(OmegaConf.is_missing(model, name) for name in model):
            allowed = "model=pretrained needs a Hugging Face folder, or a checkpoint of ours"
            raise UserError("model.path", "null", allowed)
        return
    shape = open_pretrained(Path(model.path).expanduser(), "model.path").config
    for name, value in asdict(shape).items():
        if OmegaConf.is_missing(model, name):
            model[name] = value
        elif model[name] != value and name not in OVERRIDABLE_FIELDS:
            allowed = f"the model in {model.path} has {value}; leave it (model=pretrained), growth may change it"
            raise UserError(f"model.{name}", model[name], allowed)
