"""Write into a checkpoint which class its model has, and build that model again.

`config.json` names the class of a model that is no `TransformerLM`, and that of a config that is no `ModelConfig`.
They are imported from trusted packages only (`runtime/trust.py`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from growlm.growth.model_protocol import build_on_meta, growth_config_of
from growlm.model.config import ModelConfig
from growlm.model.former_fields import translate_former_fields
from growlm.model.transformer import TransformerLM
from growlm.runtime.errors import UserError
from growlm.runtime.trust import class_path_of, import_trusted
from growlm.storage.typed_values import parse_as

CLASS_KEYS = ("model_class", "config_class")
"""Keys of `config.json` that name classes."""


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Return the entries of `config.json` that the model can be built from.

    Raises:
        UserError: If they could not be read again: the config has values that JSON does not keep, or a class is
            defined inside a function.
    """
    config: Any = getattr(model, "config", None)
    if config is None:
        reason = "has no attribute config, which a checkpoint keeps to build it from"
        raise UserError("model", type(model).__name__, reason)
    found = {"model_class": _plain_class(model), "config_class": type(config)}
    usual = {"model_class": TransformerLM, "config_class": ModelConfig}
    paths = {key: class_path_of(cls) for key, cls in found.items() if cls is not usual[key]}
    for path in paths.values():
        if "<locals>" in path:
            reason = "is defined inside a function; a checkpoint needs a class of a module"
            raise UserError("model", path, reason)
    return {"model": _encode_config(config), **paths}


def _plain_class(model: nn.Module) -> type[nn.Module]:
    """Return the model's class; FSDP2 puts one of its own before it."""

    def is_sharded(cls: type) -> bool:
        return any(base.__name__ == "FSDPModule" for base in cls.__mro__)

    return next(cls for cls in type(model).__mro__ if not is_sharded(cls))


def _encode_config(config: Any) -> dict[str, Any]:
    is_restored = True  # by a method, or by the types of the fields
    if _has_dict_methods(type(config)):
        content = config.to_dict()
    elif dataclasses.is_dataclass(config) and not isinstance(config, type):
        content = dataclasses.asdict(config)
    else:
        content, is_restored = dict(vars(config)), False
    for name, value in content.items():
        try:
            is_kept = json.loads(json.dumps(value)) == value or is_restored
        except (TypeError, ValueError):
            is_kept = False
        if not is_kept:
            reason = f"has a value of type {type(value).__name__}, which JSON does not keep; give the config "
            reason += "the methods to_dict() and from_dict(values)"
            raise UserError(f"config.{name}", value, reason)
    return content


def _has_dict_methods(config_class: type) -> bool:
    return all(callable(getattr(config_class, name, None)) for name in ("to_dict", "from_dict"))


def parse_model_config(content: Any, config_class: type[ModelConfig] = ModelConfig) -> ModelConfig:
    """Return the model config that `config.json` describes.

    Raises:
        ValueError: If it is invalid.
    """
    values = translate_former_fields(parse_as(dict[str, Any], content, "model"))
    config: ModelConfig = parse_as(config_class, values, "model")
    config.validate()
    return config


def _decode_config(config_class: Any, content: Any) -> Any:
    if issubclass(config_class, ModelConfig):
        return parse_model_config(content, config_class)
    values = parse_as(dict[str, Any], content, "model")
    if _has_dict_methods(config_class):
        return config_class.from_dict(values)
    if dataclasses.is_dataclass(config_class):
        return parse_as(config_class, values, "model")
    config = config_class.__new__(config_class)
    vars(config).update(values)
    return config


def names_classes(entries: Mapping[str, Any]) -> list[str]:
    """Return the classes that `config.json` names."""
    return [str(entries[key]) for key in CLASS_KEYS if key in entries]


def build_described_model(
    entries: Mapping[str, Any], folder: Path, key: str, trust: Sequence[str]
) -> nn.Module:
    """Build the model that `config.json` describes, without memory for its weights.

    Args:
        entries: Content of `config.json`.
        folder: Checkpoint folder, for messages.
        key: Setting that named the folder.
        trust: Packages whose classes may be imported.

    Raises:
        UserError: If a class is not trusted, or the model cannot be built.
    """
    model_class: Any = TransformerLM
    config_class: Any = ModelConfig
    if "model_class" in entries:
        model_class = import_trusted(str(entries["model_class"]), trust, f"{key}.model_class")
    if "config_class" in entries:
        config_class = import_trusted(str(entries["config_class"]), trust, f"{key}.config_class")
    if not issubclass(model_class, nn.Module):
        raise UserError(f"{key}.model_class", entries["model_class"], "is not an nn.Module")
    try:
        config = _decode_config(config_class, entries.get("model"))
        model: nn.Module = build_on_meta(lambda: model_class(config), with_values=True)
        growth_config_of(model)
    except Exception as error:  # code of another package may raise anything
        if isinstance(error, UserError) and error.key == "model":
            raise UserError(f"{key}.model_class", error.value, error.reason) from error
        name = f"{model_class.__name__} of {config_class.__name__}"
        reason = f"config.json does not describe a valid model ({name}): {error}"
        raise UserError(key, folder, reason) from error
    return model
