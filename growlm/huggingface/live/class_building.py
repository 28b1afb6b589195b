"""Build a model of a transformers class without memory for its weights, and give it those."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import PretrainedConfig, PreTrainedModel

from growlm.growth.model_protocol import adopt_unsaved_tensors, find_unsaved_tensors
from growlm.huggingface.config_reading import EXTRAS_KEY
from growlm.runtime.errors import UserError

TRAINING_KEYS = re.compile(
    r".*dropout.*|.*_pdrop|initializer_range|use_cache|output_router_logits|router_jitter_noise"
)
"""Keys of single classes that change training, or how a model is called, and that their tables leave out."""
OWN_KEYS = (EXTRAS_KEY, "auto_map")
"""Keys that growlm writes itself, or that belong to files of the old model."""
IMPLEMENTATIONS = ("_attn_implementation", "_experts_implementation")
"""Attributes of a config that choose between kernels of the same function."""


def build_without_weights(
    model_class: type[PreTrainedModel],
    content: Mapping[str, Any],
    old: PreTrainedModel,
    dtype: torch.dtype,
) -> PreTrainedModel:
    """Build a model whose parameters are on the meta device and whose buffers have their values.

    Args:
        model_class: Class of the model.
        content: Content of its `config.json`.
        old: Model before the growth: what its config says about other things than the function is kept.
        dtype: Dtype of the model.

    Raises:
        UserError: If the old model has a setting that the class does not have.
    """
    config = _make_config(model_class, content, old.config)
    if _checkpointed_modules(old) and not model_class.supports_gradient_checkpointing:
        reason = (
            "has gradient checkpointing on, which the class of the grown model does not support "
            f"({model_class.__name__}); call model.gradient_checkpointing_disable() first"
        )
        raise UserError("model", type(old).__name__, reason)
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            model: PreTrainedModel = model_class._from_config(copy.deepcopy(config), dtype=dtype)
        if find_unsaved_tensors(model):  # tables that it computes when it is built
            with _parameters_on_meta(), torch.device("cpu"):
                model = model_class._from_config(config, dtype=dtype)
    if getattr(old, "generation_config", None) is not None and model.can_generate():
        model.generation_config = copy.deepcopy(old.generation_config)
    return model


def assign_weights(
    model: PreTrainedModel,
    weights: dict[str, Tensor],
    old: PreTrainedModel,
    sources: Callable[[str], str],
) -> None:
    """Give a model from `build_without_weights` its weights, and the mode and device of the old one.

    Args:
        model: New model, which takes the tensors over.
        weights: Tensors by name; of several names of one tensor, one is enough.
        old: Model before the growth.
        sources: Function from the name of a tensor in the new model to that in the old one.
    """
    parameters: dict[int, nn.Parameter] = {}
    by_tensor = model.state_dict(keep_vars=True)
    for name, value in weights.items():
        if by_tensor[name].dtype != model.config.dtype:  # the class wants it in a wider one
            value = weights[name] = value.to(
                torch.promote_types(value.dtype, by_tensor[name].dtype)
            )
        if isinstance(by_tensor[name], nn.Parameter):
            parameters[id(by_tensor[name])] = nn.Parameter(value)
    complete = {
        name: parameters[id(tensor)] if id(tensor) in parameters else weights[name]
        for name, tensor in by_tensor.items()
    }
    model.load_state_dict(complete, assign=True)
    adopt_unsaved_tensors(model, old, sources)
    for module, attribute, value in find_unsaved_tensors(model).values():
        setattr(module, attribute, value.to(old.device))
    _adopt_checkpointing(model, old, sources)
    model.train(old.training)


def _make_config(
    model_class: type[PreTrainedModel], content: Mapping[str, Any], old: PretrainedConfig
) -> PretrainedConfig:
    """Return a config with the given content, and the old one's settings that are not about the function."""
    config_class = model_class.config_class
    known = config_class().to_dict().keys()
    of_all_models = PretrainedConfig().to_dict().keys()
    old_class_keys = type(old)().to_dict().keys()

    def is_kept(key: str) -> bool:
        """Return whether a key is the user's own, or of both classes and not about the function."""
        if key not in known and key not in old_class_keys:
            return key not in OWN_KEYS
        of_both = key in known and key in old_class_keys
        return of_both and (key in of_all_models or bool(TRAINING_KEYS.fullmatch(key)))

    kept = {key: value for key, value in old.to_dict().items() if is_kept(key)}
    config: PretrainedConfig = config_class.from_dict(kept | dict(content))
    config.name_or_path = old.name_or_path
    for name in IMPLEMENTATIONS:
        if (value := getattr(old, name, None)) is not None and _can_choose(model_class, name):
            setattr(config, name, value)
    return config


def _can_choose(model_class: type[PreTrainedModel], name: str) -> bool:
    """Return whether the class has several implementations of attention or experts."""
    return name != "_attn_implementation" or bool(getattr(model_class, "_supports_sdpa", False))


def _checkpointed_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that recompute their activations in the backward pass, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if getattr(module, "gradient_checkpointing", False)
    }


def _adopt_checkpointing(
    model: PreTrainedModel, old: PreTrainedModel, sources: Callable[[str], str]
) -> None:
    """Turn gradient checkpointing on as in the old model: in the same blocks, with the same function."""
    before = _checkpointed_modules(old)
    if not before:
        return
    # The name since transformers 5.20; the other one warns there.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)()
    for name, module in _checkpointed_modules(model).items():
        module.gradient_checkpointing = sources(name) in before  # type: ignore[assignment]
        if sources(name) in before:
            module._gradient_checkpointing_func = before[sources(name)]._gradient_checkpointing_func


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Move every parameter to the meta device when a module gets it; only the tensor just made has memory."""
    own_thread = threading.get_ident()

    def move(_module: nn.Module, _name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if parameter.is_meta or threading.get_ident() != own_thread:
            return None
        return nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(move)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()
