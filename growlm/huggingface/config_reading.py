"""Read a Hugging Face `config.json` into a `ModelConfig`, by the architecture's table.

Any key that the table does not cover, and that would change what the model computes, is rejected by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growlm.checkpoint.checkpoint_folder import READABLE_FORMATS, explain_missing_folder
from growlm.data.tokenization.huggingface_tokenizer import HUGGINGFACE, find_tokenizer_files
from growlm.huggingface.architecture import Architecture
from growlm.huggingface.architectures import ARCHITECTURES, GROWLM
from growlm.huggingface.keys.config_keys import CONFIG_NAME, ConfigReader
from growlm.huggingface.keys.layer_keys import read_layers
from growlm.huggingface.keys.rope_keys import read_rope
from growlm.huggingface.unsupported_features import check_unsupported_keys, explain_model_type
from growlm.model.config import ModelConfig, get_field_type, nest_fields, replace_fields
from growlm.model.former_fields import RENAMED_FIELDS, translate_former_fields
from growlm.runtime.errors import UserError
from growlm.storage.input_files import lexists, read_json
from growlm.storage.typed_values import parse_as

TOKEN_ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
KEPT_KEYS = ("initializer_range",)
"""Keys that change nothing in a model that has its weights; they go through growlm unchanged."""
EXTRAS_KEY = "growlm"
"""Key for growlm's own data: `ModelConfig` fields that the architecture has no key for, and the record."""
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "logit_scale": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
    "embedding_multiplier": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "attention_multiplier": (None,),
    "query_pre_attn_scalar": (None,),
    "final_logit_softcapping": (None,),
    "attn_logit_softcapping": (None,),
    "lm_head_bias": (None, False),
    "no_rope_layers": (None,),
}
"""Keys of single architectures that change what the model computes, and the values at which they do not. Keys of
features that growlm does not have at all are in `unsupported_features.py`."""


def is_hf_folder(folder: Path) -> bool:
    """Return whether a folder has a `config.json` of transformers, of any architecture."""
    try:
        content = read_json(folder / CONFIG_NAME, "source", folder)
    except UserError:  # the code that loads the folder reports it
        return False
    return (
        isinstance(content, dict)
        and "model_type" in content
        and content.get("format") not in READABLE_FORMATS
    )


def read_hf_config(folder: Path, key: str = "source") -> tuple[ModelConfig, dict[str, Any]]:
    """Read the config of a Hugging Face model, and the record for a growlm checkpoint made from it.

    Args:
        folder: Folder of the model.
        key: Setting that named the folder, for messages.

    Returns:
        The config, and the record: `huggingface` has the model type, the special token ids and the other keys that
        are kept; `tokenizer` is present if the folder has a tokenizer that growlm can read.

    Raises:
        UserError: If the folder is not a Hugging Face model, or one that growlm cannot represent; names the key.
    """
    content = _read_config_json(folder, key)
    keys = ConfigReader(folder, content)
    architecture = _find_architecture(keys)
    config = parse_model_config(architecture, content, folder)
    ids = {name: keys.get_token_ids(name) for name in TOKEN_ID_KEYS}
    kept = {name: content[name] for name in KEPT_KEYS if content.get(name) is not None}
    origin = {"model_type": architecture.model_type, **ids, **kept}
    extras = content.get(EXTRAS_KEY)
    saved = extras.get("record") if isinstance(extras, dict) else None
    record = dict(saved) if isinstance(saved, dict) else {}
    for name in ("format", "model", "tokenizer"):  # determined anew for every checkpoint
        record.pop(name, None)
    record["huggingface"] = origin
    if find_tokenizer_files(folder):
        record["tokenizer"] = HUGGINGFACE
    return config, record


def detect_architecture(folder: Path, key: str = "source") -> Architecture:
    """Return the architecture of a folder's model.

    Raises:
        UserError: If growlm does not support it.
    """
    return _find_architecture(ConfigReader(folder, _read_config_json(folder, key)))


def read_hf_config_content(
    content: Mapping[str, Any], folder: Path
) -> tuple[Architecture, ModelConfig]:
    """Return the architecture and the config of a model whose `config.json` has been read already.

    Args:
        content: Parsed content of `config.json`.
        folder: Folder of the file, for messages.

    Raises:
        UserError: If growlm does not support the architecture, or cannot represent the model.
    """
    architecture = _find_architecture(ConfigReader(folder, content))
    return architecture, parse_model_config(architecture, content, folder)


def parse_model_config(
    architecture: Architecture, content: Mapping[str, Any], folder: Path
) -> ModelConfig:
    """Convert the content of a `config.json` to a `ModelConfig`.

    Args:
        architecture: Architecture of the model.
        content: Parsed content of `config.json`.
        folder: Folder of the file, for messages.

    Raises:
        UserError: If a key has a value that growlm's model does not support.
    """
    if architecture is GROWLM:
        content = translate_former_fields(content)
    content = {architecture.key_aliases.get(key, key): value for key, value in content.items()}
    keys = ConfigReader(folder, content, architecture.key_defaults)
    check_unsupported_keys(keys)
    for name, allowed in NEUTRAL_VALUES.items():
        if name not in architecture.keys:
            keys.check_allowed(name, allowed)
    for name, allowed in architecture.required_values.items():
        keys.check_allowed(name, allowed)
    fields = dict(architecture.fixed_fields)
    for name, hf_keys in architecture.field_to_key.items():
        value = keys.get_agreed(hf_keys.split(), architecture.value_names.get(name))
        fields[name] = _convert(architecture, hf_keys, value, keys)
    _check_heads(architecture, fields["n_heads"], keys)
    _derive_sizes(fields, keys)
    if architecture is not GROWLM:
        fields |= read_layers(architecture.layers, keys)
    if architecture.rotary is not None:
        has_windows = fields.get("attention.window") is not None
        fields |= read_rope(architecture.rotary, keys, has_windows, fields["head_dim"])
    fields |= _read_extras(architecture, fields, keys)
    for name, value in fields.items():
        try:
            fields[name] = parse_as(get_field_type(ModelConfig, name), value, "")
        except ValueError as error:
            hf_key = architecture.get_key(name)
            reason = str(error).removeprefix("its content ").partition(", but is ")[0]
            keys.raise_error(hf_key, repr(value), reason)
    config = ModelConfig(**nest_fields(fields))
    try:
        config.validate()
    except UserError as error:
        hf_key = architecture.get_key(error.key)
        keys.raise_error(hf_key, error.value, architecture.replace_field_names(error.reason))
    if architecture.balance_loss_scales_with_top_k:
        weight = config.routing.balance_weight * config.top_k
        return replace_fields(config, {"routing.balance_weight": weight})
    return config


def _read_extras(
    architecture: Architecture, fields: Mapping[str, Any], keys: ConfigReader
) -> dict[str, Any]:
    model = _get_own_fields(keys)
    known = [*architecture.unmapped_fields, *architecture.own_fields]
    model = {RENAMED_FIELDS.get(name, name): value for name, value in model.items()}
    for name in model:
        if name not in known:
            reason = f"there is no such field; known: {', '.join(known)}"
            keys.raise_error(f"{EXTRAS_KEY}.model.{name}", model[name], reason)
    return model


def _get_own_fields(keys: ConfigReader) -> dict[str, Any]:
    """Return the fields under growlm's own key."""
    extras = keys.content.get(EXTRAS_KEY)
    model = extras.get("model", {}) if isinstance(extras, dict) else {}
    if not isinstance(model, dict):
        keys.raise_error(EXTRAS_KEY, extras, "its model entry must be a mapping of fields")
    return model


def _read_config_json(folder: Path, key: str) -> dict[str, Any]:
    if not lexists(folder / CONFIG_NAME):
        missing = f"has no readable {CONFIG_NAME}"
        reason = missing if folder.is_dir() else explain_missing_folder(folder)
        raise UserError(key, folder, reason)
    content: dict[str, Any] = read_json(folder / CONFIG_NAME, key, folder, dict[str, Any])
    if content.get("format") in READABLE_FORMATS:
        reason = "is a growlm checkpoint, not a Hugging Face model; to=huggingface makes one of it"
        raise UserError(key, folder, reason)
    return content


def _find_architecture(keys: ConfigReader) -> Architecture:
    model_type = keys.get("model_type")
    matching = [each for each in ARCHITECTURES if each.model_type == model_type]
    if not matching:
        keys.raise_error("model_type", model_type, explain_model_type(keys))
    own = _get_own_fields(keys)
    variants = [each for each in matching if each.own_fields]
    found = [each for each in variants if all(own.get(k) == v for k, v in each.own_fields.items())]
    plain = [each for each in matching if not each.own_fields]
    # Of several: if no one has this value, reading the first says which are allowed.
    architecture, *_ = (
        found or [each for each in plain if each.is_selected_by(keys.content)] or plain
    )
    classes = keys.get("architectures")
    if classes is not None and classes != [architecture.class_name]:
        keys.raise_error("architectures", classes, f"must be [{architecture.class_name}]")
    return architecture


def _convert(architecture: Architecture, key: str, value: Any, keys: ConfigReader) -> Any:
    conversion = architecture.conversions.get(key)
    if conversion is None or value is None:
        return value
    if type(value) not in (int, float) or not 0 < value < math.inf:
        keys.raise_error(key, value, "must be a number above 0")
    return conversion.read(value)


def _check_heads(architecture: Architecture, heads: Any, keys: ConfigReader) -> None:
    multiple = architecture.heads_multiple
    if type(heads) is int and heads % multiple:
        keys.raise_error(
            architecture.get_key("n_heads"), heads, f"must be a multiple of {multiple}"
        )


def _derive_sizes(fields: dict[str, Any], keys: ConfigReader) -> None:
    """Fill in sizes that are not given: heads from the other sizes, GPT-2's hidden units from its width."""
    heads, width = fields["n_heads"], fields["d_model"]
    if fields.get("d_ff") is None and type(width) is int:
        fields["d_ff"] = 4 * width
    if fields.get("n_kv_heads") is None:
        fields["n_kv_heads"] = heads
    if fields.get("head_dim") is None:
        if type(heads) is not int or type(width) is not int or heads < 1 or width % heads:
            keys.raise_error(
                "hidden_size", width, f"must be a multiple of num_attention_heads={heads}"
            )
        fields["head_dim"] = width // heads
