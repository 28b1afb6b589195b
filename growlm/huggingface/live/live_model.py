"""Read a transformers model in memory as growlm reads its folder: config and tensors under growlm's names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from growlm.checkpoint.safetensors_io import TensorInfo
from growlm.distributed.dtensors import is_sharded
from growlm.huggingface.architecture import Architecture
from growlm.huggingface.architectures import GROWLM
from growlm.huggingface.config_reading import EXTRAS_KEY, read_hf_config_content
from growlm.huggingface.keys.config_keys import CONFIG_NAME
from growlm.huggingface.lazy_tensors import MappedTensors
from growlm.huggingface.tensor_conversion import map_to_growlm
from growlm.model.config import ModelConfig
from growlm.runtime.errors import UserError

MODEL_KEY = "model"
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of the weights that can grow."""


class StateDictTensors:
    """`TensorSource` of the tensors that a model in memory holds; nothing is copied.

    Args:
        name: Class of the model, for messages.
        tensors: Its state dict.
    """

    def __init__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        self.folder, self.key = Path(name), MODEL_KEY
        self._tensors = tensors

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """Return the dtype and shape of a tensor."""
        return TensorInfo(name, self._tensors[name].dtype, tuple(self._tensors[name].shape))

    def read(self, name: str) -> Tensor:
        """Return a tensor."""
        return self._tensors[name]

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return the rows from `start` up to `stop` of a tensor."""
        return self._tensors[name][start:stop]


@dataclass(frozen=True)
class LiveModel:
    """A transformers model in memory, and what growlm reads in it."""

    model: PreTrainedModel
    architecture: Architecture
    config: ModelConfig
    tensors: MappedTensors
    """Its tensors under growlm's names and in growlm's shapes."""
    record: dict[str, Any]
    """Record that a growlm checkpoint left in its config."""


def read_live_model(model: nn.Module) -> LiveModel:
    """Check a transformers model, and read its config and tensors.

    Raises:
        UserError: If growlm cannot represent it, or cannot grow it in the state that it is in.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        _refuse(model, "holds adapters; merge them first, with model.merge_and_unload()")
    content = json.loads(model.config.to_json_string())
    try:
        architecture, config = _read_config(model, content)
    except UserError as error:
        file, _, key = error.key.rpartition(": ")
        if file != str(Path(name) / CONFIG_NAME):
            raise
        raise UserError(f"model.config.{key}", error.value, error.reason) from error
    state = model.state_dict(keep_vars=True)
    _check_tensors(model, state)
    values = {key: tensor.detach() for key, tensor in state.items()}
    tensors = map_to_growlm(StateDictTensors(name, values), config, architecture)
    extras = content.get(EXTRAS_KEY)
    record = extras.get("record", {}) if isinstance(extras, dict) else {}
    return LiveModel(model, architecture, config, tensors, record)


def get_model_class(architecture: Architecture) -> type[PreTrainedModel]:
    """Return the class of an architecture's models."""
    if architecture is GROWLM:
        from growlm.huggingface.transformers_model import GrowLMConfig, GrowLMForCausalLM

        # As when transformers loads an export: save_pretrained then writes what its Auto classes need.
        GrowLMConfig.register_for_auto_class()
        GrowLMForCausalLM.register_for_auto_class("AutoModelForCausalLM")
        return GrowLMForCausalLM
    model_class: type[PreTrainedModel] = getattr(transformers, architecture.class_name)
    return model_class


def _read_config(
    model: PreTrainedModel, content: dict[str, Any]
) -> tuple[Architecture, ModelConfig]:
    name = type(model).__name__
    # The config says which head the model had when it was saved, if it was.
    content.pop("architectures", None)
    if content.get("quantization_config") is not None:
        _refuse(
            model, "is quantized; load it in bfloat16 or float32, grow it, and quantize it again"
        )
    architecture, config = read_hf_config_content(content, Path(name))
    # What GrowLMForCausalLM has saved holds a copy of its class, which transformers loads.
    is_copy = architecture is GROWLM and name == architecture.class_name
    if type(model) is not get_model_class(architecture) and not is_copy:
        parameters = list(model.parameters())
        if any(is_sharded(parameter) for parameter in parameters):
            _refuse(model, "is sharded; grow the model first, and shard the grown one")
        reason = f"only {architecture.class_name} itself can grow"
        _refuse(model, f"{reason}; load the model with AutoModelForCausalLM")
    return architecture, config


def _check_tensors(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Check that all tensors are at hand, on one device, and the model's own."""
    if getattr(model, "_hf_peft_config_loaded", False) or any(
        ".base_layer." in each for each in tensors
    ):
        _refuse(model, "holds adapters; merge them into its weights first, or delete them")
    devices: dict[str, str] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES:
            kind = getattr(tensor, "dtype", tensor)
            reason = f"has {name} of another kind than fp64, fp32, bf16 and fp16 ({kind})"
            _refuse(model, f"{reason}; load it in bfloat16 or float32")
        devices.setdefault(str(tensor.device), name)
    if "meta" in devices:
        reason = f"has no values for {devices['meta']}: it is on the meta device, or offloaded"
        _refuse(model, f"{reason}; load the model without device_map")
    if len(devices) > 1:
        reason = f"is spread over {', '.join(sorted(devices))}"
        _refuse(model, f"{reason}; load it on one device, grow it, and spread it again")
    if any(is_sharded(tensor) for tensor in tensors.values()):
        _refuse(model, "is sharded; grow the model first, and shard the grown one")


def _refuse(model: nn.Module, reason: str) -> NoReturn:
    raise UserError(MODEL_KEY, type(model).__name__, reason)
