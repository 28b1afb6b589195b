"""Whether files hold the model that a config describes; asked before any of it is read."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from growlm.checkpoint.safetensors_io import TensorSource
from growlm.model.config import ModelConfig
from growlm.model.transformer import TransformerLM
from growlm.runtime.errors import UserError


def build_meta_model(config: ModelConfig, files: TensorSource) -> TransformerLM:
    """Check that the files hold the model that a config describes.

    Returns:
        The model, on the meta device.

    Raises:
        UserError: If they do not.
    """
    if len(files.names) < config.n_layers:  # before building thousands of layers that are not there
        allowed = f"{len(files.names)} tensors are no {config.n_layers} layers, as the config says"
        raise UserError(files.key, files.folder, allowed)
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
    """Check that the files hold the tensors that a config describes.

    Raises:
        UserError: Naming the first tensor that is missing, unknown, of another shape, or of a type for no weights.
    """
    present = set(files.names)
    for name in sorted(expected.keys() | present):
        if name not in present:
            raise UserError(key, files.folder, f"the weights lack {name}")
        if name not in expected:
            raise UserError(key, files.folder, f"the weights hold {name}, unknown to the config")
        entry = files.info(name)
        if entry.shape != expected[name]:
            allowed = f"{name} is {entry.shape}, the config says {expected[name]}"
            raise UserError(key, files.folder, allowed)
        if not entry.dtype.is_floating_point:
            raise UserError(key, files.folder, f"{name} is of type {entry.dtype}, no weights")
