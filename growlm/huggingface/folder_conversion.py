"""Whole folders, both ways: everything is checked first, then written tensor by tensor, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from growlm.checkpoint.checkpoint_folder import (
    OPTIMIZER_STEM,
    WEIGHTS_STEM,
    read_config,
    write_config,
)
from growlm.checkpoint.offline_growth import (
    ByteProgress,
    accumulate_progress,
    check_target_folder,
    create_target_folder,
)
from growlm.checkpoint.safetensors_io import TensorFiles, write_tensors
from growlm.checkpoint.sidecar_files import copy_sidecar_files
from growlm.checkpoint.weight_validation import check_tensor_shapes
from growlm.data.tokenization.huggingface_tokenizer import HUGGINGFACE
from growlm.huggingface.architecture import Architecture
from growlm.huggingface.architectures import ARCHITECTURES, GROWLM
from growlm.huggingface.config_keys import CONFIG_NAME
from growlm.huggingface.config_reading import (
    TOKEN_ID_KEYS,
    detect_architecture,
    is_hf_folder,
    read_hf_config,
)
from growlm.huggingface.config_writing import build_hf_config, can_represent
from growlm.huggingface.tensor_conversion import (
    HuggingFaceTensors,
    MappedTensors,
    get_state_dict_shapes,
    map_to_huggingface,
)
from growlm.huggingface.tokenizer_files import (
    check_tokenizer_fits,
    get_builtin_token_ids,
    list_hf_sidecar_files,
    write_builtin_tokenizer,
    write_generation_config,
)
from growlm.model.config import ModelConfig
from growlm.runtime.errors import UserError

SOURCE_SETTING = "source"

CONFIG_MODULE, MODEL_MODULE = "configuration_growlm", "modeling_growlm"
AUTO_MAP = {
    "AutoConfig": f"{CONFIG_MODULE}.GrowLMConfig",
    "AutoModelForCausalLM": f"{MODEL_MODULE}.GrowLMForCausalLM",
}
"""Where transformers finds the classes of a model that it has no class for: files of the folder."""


@dataclass(frozen=True)
class ConversionReport:
    """What was done."""

    class_name: str
    """The Hugging Face class."""
    config: ModelConfig
    dtypes: tuple[torch.dtype, ...]
    """Of its tensors: more than one where the files are mixed."""
    tokenizer: str
    """In words."""
    omitted: tuple[str, ...] = ()
    """What the new folder does not have, in words."""


def to_growlm(
    source: Path,
    target: Path,
    *,
    dtype: torch.dtype | None = None,
    progress: ByteProgress = lambda done, total: None,
) -> ConversionReport:
    """Write a Hugging Face model as a checkpoint.

    Args:
        source: Folder of the model.
        target: Of the checkpoint; must not exist.
        dtype: Of the weights; None for that of the files.
        progress: Called after every tensor.

    Raises:
        UserError: If it cannot be one of ours, the target exists, or the disk has no room. Nothing is left behind.
    """
    config, record = read_hf_config(source, SOURCE_SETTING)
    tensors = HuggingFaceTensors(source, SOURCE_SETTING, dtype)
    check_tokenizer_fits(source, config.vocab_size, SOURCE_SETTING)

    def others(folder: Path) -> None:
        write_generation_config(folder, _source_token_ids(record))
        write_config(folder, config, record)

    _write_folder(tensors, target, list_hf_sidecar_files(source), others, progress)
    words = (
        "carried along" if "tokenizer" in record else "none that growlm reads: no tokenizer.json"
    )
    class_name = detect_architecture(source, SOURCE_SETTING).class_name
    return ConversionReport(class_name, config, _dtypes(tensors), words)


def to_huggingface(
    source: Path,
    target: Path,
    *,
    architecture: str = "auto",
    dtype: torch.dtype | None = None,
    progress: ByteProgress = lambda done, total: None,
) -> ConversionReport:
    """Write a checkpoint as a Hugging Face model.

    Args:
        source: Folder of the checkpoint.
        target: Of the model; must not exist.
        architecture: `auto` for the class of transformers that computes the same, and growlm's own where there is
            none; `growlm` for growlm's own, which takes every model.
        dtype: Of the weights; None for that of the files.
        progress: Called after every tensor.

    Raises:
        UserError: If the source is no checkpoint or the architecture cannot hold it, the target exists, or the
            disk has no room. Nothing is left behind.
    """
    if is_hf_folder(source):
        raise UserError(
            SOURCE_SETTING, source, "is a Hugging Face model already; to=growlm makes it ours"
        )
    config, record = read_config(source, SOURCE_SETTING)
    files = TensorFiles(source, WEIGHTS_STEM, SOURCE_SETTING)
    check_tensor_shapes(files, get_state_dict_shapes(config), SOURCE_SETTING)
    chosen = GROWLM if architecture == GROWLM.model_type else choose_architecture(config, record)
    if chosen is not GROWLM and config.is_moe and config.router_tie_breaking:
        allowed = f"{chosen.class_name} has no such order; architecture=growlm exports the model"
        raise UserError("router_tie_breaking", "true", allowed)
    tensors = map_to_huggingface(files, config, chosen, dtype)
    name = record.get("tokenizer")
    ids = _export_token_ids(source, config, record)

    carried = list_hf_sidecar_files(source) if name in (None, HUGGINGFACE) else None

    def others(folder: Path) -> None:
        if carried is None:
            write_builtin_tokenizer(str(name), folder, config.max_seq_len)
        write_generation_config(folder, ids)
        # A class of transformers never trains the embedding of its config's pad token.
        in_config = {**ids, "pad_token_id": _source_token_ids(record).get("pad_token_id")}
        rest = {key: value for key, value in record.items() if key not in OMITTED_RECORD_KEYS}
        widest = reduce(torch.promote_types, _dtypes(tensors))  # what holds all of them exactly
        content = build_hf_config(chosen, config, widest, in_config, rest)
        if chosen is GROWLM:
            content["auto_map"] = AUTO_MAP
            _write_remote_code(folder)
        (folder / CONFIG_NAME).write_text(json.dumps(content, indent=2) + "\n")

    _write_folder(tensors, target, carried or [], others, progress)
    words = "none: the checkpoint names none" if name is None else f"{name}, as tokenizer.json"
    left_out = ("the optimizer's state",) if TensorFiles.exist(source, OPTIMIZER_STEM) else ()
    return ConversionReport(chosen.class_name, config, _dtypes(tensors), words, left_out)


OMITTED_RECORD_KEYS = ("tokenizer", "huggingface")
"""What of a checkpoint's record an export says in other places."""


def choose_architecture(config: ModelConfig, record: Mapping[str, Any]) -> Architecture:
    """The architecture that a checkpoint came from, if it still holds it; else the first that does."""
    first = [each for each in ARCHITECTURES if each.model_type == _origin(record).get("model_type")]
    return next(each for each in (*first, *ARCHITECTURES) if can_represent(each, config))


def _origin(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a record says of the Hugging Face model that the checkpoint was made of."""
    origin = record.get("huggingface")
    return origin if isinstance(origin, dict) else {}


def _source_token_ids(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _origin(record).get(name) for name in TOKEN_ID_KEYS}


def _export_token_ids(
    source: Path, config: ModelConfig, record: Mapping[str, Any]
) -> dict[str, Any]:
    name = record.get("tokenizer")
    if name in (None, HUGGINGFACE):
        check_tokenizer_fits(source, config.vocab_size, SOURCE_SETTING)
        return _source_token_ids(record)
    return dict(get_builtin_token_ids(name, config.vocab_size, source, SOURCE_SETTING))


def _write_folder(
    tensors: MappedTensors,
    target: Path,
    carried: Sequence[Path],
    others: Callable[[Path], None],
    progress: ByteProgress,
) -> None:
    entries = [tensors.info(name) for name in tensors.names]
    total = sum(entry.nbytes for entry in entries)
    check_target_folder(target, total, carried, SOURCE_SETTING)
    with create_target_folder(target) as (partial, digests), torch.no_grad():
        digests |= write_tensors(
            partial, WEIGHTS_STEM, entries, tensors.read, accumulate_progress(progress, total)
        )
        copy_sidecar_files(carried, partial)
        others(partial)


def _write_remote_code(folder: Path) -> None:
    for module, name in ((CONFIG_MODULE, "GrowLMConfig"), (MODEL_MODULE, "GrowLMForCausalLM")):
        text = '"""transformers finds the class here; it is growlm\'s: pip install growlm."""\n\n'
        text += (
            f'from growlm.huggingface.transformers_model import {name}\n\n__all__ = ["{name}"]\n'
        )
        (folder / f"{module}.py").write_text(text)


def _dtypes(tensors: MappedTensors) -> tuple[torch.dtype, ...]:
    return tuple(dict.fromkeys(tensors.info(name).dtype for name in tensors.names))
