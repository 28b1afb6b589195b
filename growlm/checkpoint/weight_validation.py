"""Check that files hold the tensors of the model that a config describes, before any tensor is read."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from growlm.checkpoint.safetensors_io import TensorSource
from growlm.model.config import ModelConfig
from growlm.model.transformer import TransformerLM
from growlm.runtime.errors import UserError


def build_meta_model(config: ModelConfig, files: TensorSource) -> TransformerLM:
    """Build the model on the meta device, after checking that the files hold its tensors.

    Returns:
        The model, without memory for its weights.

    Raises:
        UserError: If the files do not match the config.
    """
    if len(files.names) < config.n_layers:  # do not build thousands of layers that are not there
        reason = f"has {len(files.names)} tensors, too few for the {config.n_layers} layers of its config"
        raise UserError(files.key, files.folder, reason)
    check_tensor_shapes(files, get_state_dict_shapes(config), files.key)
    with torch.device("meta"):
        return TransformerLM(config)


def get_state_dict_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter and buffer of a model; nothing is allocated."""
    with torch.device("meta"):
        model = TransformerLM(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_tensor_shapes(
    files: TensorSource, expected: Mapping[str, tuple[int, ...]], key: str
) -> None:
    """Check that the files hold exactly the expected tensors, in floating point.

    Raises:
        UserError: For the first tensor that is missing, unknown, of another shape, or not floating-point.
    """
    present = set(files.names)
    for name in sorted(expected.keys() | present):
        if name not in present:
            raise UserError(key, files.folder, f"{name} is missing from the weights")
        if name not in expected:
            raise UserError(key, files.folder, f"the weights have {name}, unknown to the config")
        info = files.info(name)
        if info.shape != expected[name]:
            reason = f"{name} has shape {info.shape}; the config says {expected[name]}"
            raise UserError(key, files.folder, reason)
        if not info.dtype.is_floating_point:
            reason = f"{name} has dtype {info.dtype}; weights must be floating-point"
            raise UserError(key, files.folder, reason)
