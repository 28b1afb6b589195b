"""What growth asks of a model: its sizes as a `ModelConfig`, and a new model of its class with other sizes.

A model whose `config` is a `ModelConfig`, and whose class makes it from that alone, has both already. Any other
model has the methods of `GrowableModel`. docs/own_models.md is the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from growlm.growth.model_adapters import has_model_adapter
from growlm.model.axes import (
    LabeledShape,
    axes_table,
    check_axis_sizes,
    check_growth_axes,
    find_block_stack,
    get_blocks,
)
from growlm.model.config import ModelConfig
from growlm.runtime.errors import UserError

Model = TypeVar("Model", bound=nn.Module)
AxesTable = Mapping[str, LabeledShape]


@runtime_checkable
class GrowableModel(Protocol):
    """A module that says itself what its sizes are and how to build it with others.

    It may also have `growth_axes`, a mapping from axis names of its own to the standard ones; an axis that
    corresponds to none of them is mapped to itself.
    """

    def growth_config(self) -> ModelConfig:
        """Return the model's sizes, and what operators ask about its parts, from its own config."""

    def with_growth_config(self, config: ModelConfig) -> nn.Module:
        """Return a new model of this class whose `growth_config()` equals `config`; its weights are ignored."""


def growth_config_of(model: nn.Module) -> ModelConfig:
    """Return the sizes of a model, as operators read them.

    Raises:
        UserError: If the model is no module, is wrapped in another one, has neither the methods nor a
            `ModelConfig`, or is of another library.
    """
    if not isinstance(model, nn.Module):
        value = model if isinstance(model, (str, Path)) else type(model).__name__
        reason = "is no torch.nn.Module; load the model first, and give grow() what is loaded"
        raise UserError("model", value, reason)
    children = dict(model.named_children())
    if "_fsdp_wrapped_module" in children:
        reason = "shards the model; grow the model before it is wrapped, and wrap the result"
        raise UserError("model", type(model).__name__, reason)
    wrapped = [name for name in ("_orig_mod", "module") if name in children]
    has_config = hasattr(model, "config") or isinstance(model, GrowableModel)
    if wrapped and ("_orig_mod" in wrapped or not has_config):
        reason = f"wraps the model; grow model.{wrapped[0]}, and wrap the result again"
        raise UserError("model", type(model).__name__, reason)
    config = (
        model.growth_config()
        if isinstance(model, GrowableModel)
        else getattr(model, "config", None)
    )
    if isinstance(config, ModelConfig):
        return config
    if has_model_adapter(model):
        reason = "is a model of another library; only grow(model, operators) and the checks take it"
        raise UserError("model", type(model).__name__, reason)
    found = f"a config of class {type(config).__name__}" if config is not None else "no config"
    reason = (
        f"has {found}; give it the ModelConfig that its class makes it from as config, or the methods "
        "growth_config() and with_growth_config(config)"
    )
    raise UserError("model", type(model).__name__, reason)


def build_with_config(model: Model, config: ModelConfig, with_values: bool = False) -> Model:
    """Return a model of the class of `model` with other sizes, without memory for its weights.

    Args:
        model: Model that stays as it is.
        config: Sizes of the new model.
        with_values: See `build_on_meta`.

    Raises:
        ValueError: If the model cannot be built from the sizes, or does not take one over.
    """
    name = type(model).__name__
    before = growth_config_of(model)
    made: Model = build_on_meta(lambda: _build(model, config), with_values)
    if made is model or growth_config_of(model) != before:
        raise ValueError(
            f"{name}.with_growth_config changes the model; it must leave the model and its config as they are, "
            "and build a new one"
        )
    if difference := _describe_difference(growth_config_of(made), config):
        raise ValueError(f"{name}.with_growth_config builds a model with {difference}")
    return made


def _build(model: Any, config: ModelConfig) -> Any:
    if isinstance(model, GrowableModel):
        return model.with_growth_config(config)
    return _build_from_class(type(model), config)


def _build_from_class(model_class: type[nn.Module], config: ModelConfig) -> nn.Module:
    try:
        return model_class(config)
    except TypeError as error:
        name = model_class.__name__
        raise ValueError(f"{name} cannot be made from its config alone: {error}") from error


def _describe_difference(found: ModelConfig, expected: ModelConfig) -> str | None:
    """Return the first field in which the sizes of a new model are not those that it was to have."""
    for each in fields(expected):
        values = [getattr(config, each.name, None) for config in (found, expected)]
        if values[0] != values[1]:
            return (
                f"{each.name}={values[0]} in its growth_config(), where {values[1]} was asked for"
            )
    return None


def growth_axes_table(model: nn.Module, config: ModelConfig) -> AxesTable:
    """Return the axes table of a model, after checking it against the model's sizes.

    Raises:
        ValueError: If a parameter or buffer has no axis label or one that does not fit it or the config, or if the
            number of blocks is not the config's; names the parameter.
    """
    sizes = config.axis_sizes()
    table = axes_table(model)
    own_axes = check_growth_axes(getattr(model, "growth_axes", {}), sizes)
    check_axis_sizes(table, sizes, own_axes)
    if (blocks := get_blocks(model)) and len(blocks) != config.n_layers:
        raise ValueError(
            f"{find_block_stack(model)} holds {len(blocks)} blocks, but the config has n_layers={config.n_layers}"
        )
    return table


def axes_table_from_config(config: ModelConfig, model_class: type[nn.Module]) -> AxesTable:
    """Return the axes table of the model that a class makes from a config, without allocating; it is cached."""
    return _cached_axes_table(config, model_class)  # type: ignore[arg-type] # a class is hashable


@lru_cache(maxsize=64)
def _cached_axes_table(config: ModelConfig, model_class: type[nn.Module]) -> AxesTable:
    return growth_axes_table(build_on_meta(lambda: _build_from_class(model_class, config)), config)


def axes_table_with_config(model: nn.Module, config: ModelConfig) -> AxesTable:
    """Return the axes table of a model of the class of `model` with other sizes, without allocating."""
    if isinstance(model, GrowableModel):
        return growth_axes_table(build_with_config(model, config), config)
    return axes_table_from_config(config, type(model))


def build_on_meta(build: Callable[[], Model], with_values: bool = False) -> Model:
    """Build a model whose weights are on the meta device; the global random state is left as it is.

    Args:
        build: Function that builds it.
        with_values: Whether tensors that are not in its state dict (buffers with `persistent=False`, attributes)
            must have their values. A model that has some is built on the CPU, and its weights are dropped.
    """
    try:
        with torch.device("meta"):
            model = build()
    except RuntimeError:  # it reads numbers of tensors that it makes
        return _build_without_weights(build)
    return _build_without_weights(build) if with_values and find_unsaved_tensors(model) else model


def find_unsaved_tensors(model: nn.Module) -> dict[str, tuple[nn.Module, str, Tensor]]:
    """Return the tensors that the state dict does not hold, with their modules and attributes, by full name."""
    saved = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    return {
        f"{prefix}.{name}" if prefix else name: (module, name, value)
        for prefix, module in model.named_modules()
        for name, value in (*module._buffers.items(), *vars(module).items())
        if isinstance(value, Tensor) and id(value) not in saved
    }


def _build_without_weights(build: Callable[[], Model]) -> Model:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        model = build()
    saved = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    empty: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) in saved:
                    tensors[name] = empty.setdefault(id(tensor), _to_meta(tensor))  # type: ignore[assignment]
    return model


def _to_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def first_names(model: nn.Module) -> dict[str, str]:
    """Return, for each name of the state dict, the first name of the same tensor."""
    names: dict[int, str] = {}
    tensors = model.state_dict(keep_vars=True)
    return {name: names.setdefault(id(tensor), name) for name, tensor in tensors.items()}


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a model from the meta device its weights; one tensor under several names stays one.

    Args:
        model: Model on the meta device.
        weights: Tensor for each name of its state dict. The model takes them over.
    """
    parameters = {name for name, _ in model.named_parameters()}
    for name, first in first_names(model).items():
        if name != first:
            if first in parameters and not isinstance(weights[first], nn.Parameter):
                weights[first] = nn.Parameter(weights[first])
            weights[name] = weights[first]
    model.load_state_dict(weights, assign=True)


def adopt_unsaved_tensors(model: nn.Module, old: nn.Module, sources: Callable[[str], str]) -> None:
    """Give tensors that the state dict does not hold the precision, device and, if they agree, values of the old.

    A table that a model computes when it is built (rotary frequencies, masks) may have been computed in another
    precision in the old model.

    Args:
        model: New model, built with values.
        old: Old model.
        sources: Function from the name of something in the new model to that in the old one.
    """
    before = find_unsaved_tensors(old)
    for name, (module, attribute, value) in find_unsaved_tensors(model).items():
        if sources(name) not in before:
            continue
        old_value = before[sources(name)][2]
        new = value.to(old_value.device, old_value.dtype)
        if new.shape == old_value.shape and torch.allclose(new, old_value, 1e-3, equal_nan=True):
            new = old_value.clone()
        setattr(module, attribute, new)
