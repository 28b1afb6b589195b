"""`config.json` of Hugging Face: to a `ModelConfig`, by the architecture's table.

Everything that the table does not cover and that would change what is computed is refused, by the key's name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from growlm.checkpoint.checkpoint_folder import FORMAT
from growlm.data.tokenization.huggingface_tokenizer import NAME as HUGGINGFACE
from growlm.data.tokenization.huggingface_tokenizer import tokenizer_files
from growlm.huggingface.architecture import Architecture
from growlm.huggingface.architectures import ARCHITECTURES, GROWLM
from growlm.huggingface.config_keys import CONFIG_NAME, ConfigKeys
from growlm.model.config import ModelConfig
from growlm.runtime.errors import UserError
from growlm.runtime.field_limits import check_types
from growlm.storage.input_files import exists, read_json

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
EXTRAS = "growlm"
"""Key for what only we have: fields of ours that the architecture has no key for, and the artefact's record."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "logit_scale": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
    "embedding_multiplier": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "attention_multiplier": (None,),
    "query_pre_attn_scalar": (None,),
    "final_logit_softcapping": (None,),
    "attn_logit_softcapping": (None,),
    "clip_qkv": (None,),
    "use_qk_norm": (None, False),
    "qk_layernorm": (None, False),
    "alibi": (None, False),
    "no_rope_layers": (None,),
    "per_layer_config": (None,),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
}
"""Keys of any architecture that change what is computed, and the values with which they do not."""


def is_hf_folder(folder: Path) -> bool:
    """Whether a folder has a `config.json` as transformers writes it, of whatever architecture."""
    try:
        content = read_json(folder / CONFIG_NAME, "source", folder)
    except UserError:  # said again by whoever reads it
        return False
    return isinstance(content, dict) and "model_type" in content and content.get("format") != FORMAT


def read_hf_config(folder: Path, key: str = "source") -> tuple[ModelConfig, dict[str, Any]]:
    """The shape of a Hugging Face model, and the record that an artefact made of it has.

    Args:
        folder: Of the model.
        key: What the user calls it, for messages.

    Returns:
        The config, and a record: `huggingface` has the architecture's name and the special token ids, `tokenizer`
        is there if the folder has one that ours can read.

    Raises:
        UserError: If the folder is no such model, or one that ours cannot be: naming the key in `config.json`.
    """
    content = _read(folder, key)
    keys = ConfigKeys(folder, content)
    architecture = _architecture(keys)
    config = config_from(architecture, content, folder)
    ids = {name: keys.token_ids(name) for name in TOKEN_IDS}
    origin = {"model_type": architecture.model_type, **ids}
    extras = content.get(EXTRAS)
    kept = extras.get("record") if isinstance(extras, dict) else None
    record = dict(kept) if isinstance(kept, dict) else {}
    for name in (
        "format",
        "model",
        "tokenizer",
    ):  # what an artefact says of itself, it finds out here
        record.pop(name, None)
    record["huggingface"] = origin
    if tokenizer_files(folder):
        record["tokenizer"] = HUGGINGFACE
    return config, record


def architecture_of(folder: Path, key: str = "source") -> Architecture:
    """Which table a folder's model is read by.

    Raises:
        UserError: If there is none.
    """
    return _architecture(ConfigKeys(folder, _read(folder, key)))


def config_from(
    architecture: Architecture, content: Mapping[str, Any], folder: Path
) -> ModelConfig:
    """The config that `config.json` describes.

    Args:
        architecture: Its table.
        content: Of `config.json`.
        folder: For messages.

    Raises:
        UserError: If a key has a value that our model cannot have.
    """
    keys = ConfigKeys(folder, content, architecture.defaults)
    for name, allowed in (NEUTRAL | dict(architecture.only)).items():
        keys.must_be(name, allowed)
    fields = dict(architecture.fixed) | {
        ours: keys.agreeing(theirs.split()) for ours, theirs in architecture.names.items()
    }
    if architecture.rotary is not None:
        fields["rope_theta"] = _rope_theta(architecture, keys)
    _derive_heads(fields, keys)
    fields |= _extras(architecture, fields, keys)
    for name, declared in get_type_hints(ModelConfig).items():
        if declared is float and type(fields.get(name)) is int:
            fields[name] = float(fields[name])
    config = ModelConfig(**fields)
    try:
        check_types(config)
        config.validate()
    except UserError as error:
        theirs = architecture.names.get(error.key, error.key).split()[0]
        keys.refuse(theirs, error.value, architecture.in_their_words(error.allowed))
    _check_window(keys, config)
    if architecture.counts_every_choice:
        weight = config.router_balance_weight * config.top_k
        return dataclasses.replace(config, router_balance_weight=weight)
    return config


def _extras(
    architecture: Architecture, fields: Mapping[str, Any], keys: ConfigKeys
) -> dict[str, Any]:
    extras = keys.content.get(EXTRAS)
    model = extras.get("model", {}) if isinstance(extras, dict) else {}
    if not isinstance(model, dict):
        keys.refuse(EXTRAS, extras, "model must be a mapping of fields")
    allowed = architecture.extra_fields
    for name in model:
        if name not in allowed:
            keys.refuse(f"{EXTRAS}.model.{name}", model[name], f"known: {', '.join(allowed)}")
    return dict(model)


def _read(folder: Path, key: str) -> dict[str, Any]:
    if not exists(folder / CONFIG_NAME):
        raise UserError(key, folder, f"no readable {CONFIG_NAME} there")
    content: dict[str, Any] = read_json(folder / CONFIG_NAME, key, folder, dict[str, Any])
    if content.get("format") == FORMAT:
        raise UserError(key, folder, "is a growlm checkpoint, no Hugging Face model")
    return content


def _architecture(keys: ConfigKeys) -> Architecture:
    model_type = keys.get("model_type")
    found = [each for each in ARCHITECTURES if each.model_type == model_type]
    if not found:
        known = ", ".join(each.model_type for each in ARCHITECTURES)
        keys.refuse("model_type", model_type, f"must be one of {known}")
    (architecture,) = found
    classes = keys.get("architectures")
    if classes is not None and classes != [architecture.class_name]:
        keys.refuse("architectures", classes, f"must be [{architecture.class_name}]")
    if architecture is not GROWLM and keys.get("auto_map") is not None:
        keys.refuse("auto_map", keys.get("auto_map"), "must be null: code in a folder is not run")
    return architecture


def _rope_theta(architecture: Architecture, keys: ConfigKeys) -> float:
    """The base of the rotary frequencies, from where transformers 5 keeps it or from where others did."""
    rotary = architecture.rotary
    assert rotary is not None
    part: Any = keys.content.get(rotary.part_key, rotary.part)
    theta: Any = keys.content.get(rotary.theta_key, rotary.theta)
    for key in ("rope_scaling", "rope_parameters"):
        parameters = keys.get(key)
        if parameters is None:
            continue
        if not isinstance(parameters, dict) or dict in map(type, parameters.values()):
            keys.refuse(key, parameters, "must be null or one mapping for all layers")
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        if kind != "default":
            keys.refuse(f"{key}.rope_type", kind, "must be default: no scaling of positions")
        theta = parameters.get("rope_theta", theta)
        part = parameters.get("partial_rotary_factor", part)
    if part != 1.0:
        keys.refuse(rotary.part_key, part, "must be 1.0: all channels of a head are rotated")
    return theta


def _derive_heads(fields: dict[str, Any], keys: ConfigKeys) -> None:
    """What follows from the other sizes where it is not given."""
    heads, width = fields["n_heads"], fields["d_model"]
    if fields.get("n_kv_heads") is None:
        fields["n_kv_heads"] = heads
    if fields.get("head_dim") is None:
        if type(heads) is not int or type(width) is not int or heads < 1 or width % heads:
            keys.refuse("hidden_size", width, f"must be a multiple of num_attention_heads={heads}")
        fields["head_dim"] = width // heads


def _check_window(keys: ConfigKeys, config: ModelConfig) -> None:
    """A window that no sequence is longer than does nothing."""
    window = keys.get("sliding_window")
    if window is not None and not (isinstance(window, int) and window >= config.max_seq_len):
        allowed = f"must be null or at least max_position_embeddings={config.max_seq_len}"
        keys.refuse("sliding_window", window, f"{allowed}: our attention has no window")
    kinds = keys.get("layer_types")
    if kinds is not None and kinds != ["full_attention"] * config.n_layers:
        keys.refuse("layer_types", kinds, "must be null or full_attention in every layer")
