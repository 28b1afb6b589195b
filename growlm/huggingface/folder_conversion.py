"""Convert model folders both ways: check everything, then write tensor by tensor, atomically."""

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
from growlm.checkpoint.safetensors_io import TensorFiles, TensorSource, write_tensors
from growlm.checkpoint.sidecar_files import copy_sidecar_files
from growlm.checkpoint.weight_validation import check_tensor_shapes
from growlm.data.tokenization.huggingface_tokenizer import EOS_TOKEN_ENTRY, HUGGINGFACE
from growlm.data.tokenization.tokenizer import load_tokenizer
from growlm.huggingface.architecture import Architecture
from growlm.huggingface.architectures import ARCHITECTURES, GROWLM
from growlm.huggingface.config_reading import (
    KEPT_KEYS,
    TOKEN_ID_KEYS,
    detect_architecture,
    is_hf_folder,
    read_hf_config,
)
from growlm.huggingface.config_writing import build_hf_config, can_represent
from growlm.huggingface.keys.config_keys import CONFIG_NAME
from growlm.huggingface.tensor_conversion import (
    HuggingFaceTensors,
    MappedTensors,
    find_lost_tensors,
    get_state_dict_shapes,
    map_to_huggingface,
)
from growlm.huggingface.tokenizer_files import (
    check_tokenizer_fits,
    get_builtin_token_ids,
    list_hf_sidecar_files,
    write_builtin_tokenizer,
    write_eos_token,
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
"""Entry of `config.json` that tells transformers which files of the folder import growlm's own classes."""


@dataclass(frozen=True)
class ConversionReport:
    """Summary of a finished conversion."""

    class_name: str
    """Hugging Face class of the model."""
    config: ModelConfig
    dtypes: tuple[torch.dtype, ...]
    """Dtypes of the tensors; more than one where the files mix them."""
    tokenizer: str
    """Text that says what became of the tokenizer."""
    omitted: tuple[str, ...] = ()
    """Parts of the source that the new folder does not have, as text."""


def to_growlm(
    source: str | Path,
    target: str | Path,
    *,
    dtype: torch.dtype | None = None,
    progress: ByteProgress = lambda done, total: None,
) -> ConversionReport:
    """Convert a Hugging Face model to a growlm checkpoint.

    Args:
        source: Folder of the model.
        target: Folder of the checkpoint to create; must not exist.
        dtype: Dtype of the weights; None for that of the files.
        progress: Function called after every tensor.

    Raises:
        UserError: If growlm cannot represent the model, the target exists, or the disk has too little space.
            Nothing is left behind.
    """
    source, target = Path(source), Path(target)
    config, record = read_hf_config(source, SOURCE_SETTING)
    tensors = HuggingFaceTensors(source, SOURCE_SETTING, dtype)
    check_tokenizer_fits(source, config.vocab_size, SOURCE_SETTING)

    def write_rest(folder: Path) -> None:
        write_generation_config(folder, _source_token_ids(record))
        write_config(folder, config, record)

    _write_folder(tensors, target, list_hf_sidecar_files(source), write_rest, progress)
    has_tokenizer = "tokenizer" in record
    tokenizer = "copied" if has_tokenizer else "none that growlm can read: no tokenizer.json"
    class_name = detect_architecture(source, SOURCE_SETTING).class_name
    return ConversionReport(class_name, config, _dtypes(tensors), tokenizer)


def to_huggingface(
    source: str | Path,
    target: str | Path,
    *,
    architecture: str = "auto",
    dtype: torch.dtype | None = None,
    progress: ByteProgress = lambda done, total: None,
) -> ConversionReport:
    """Convert a growlm checkpoint to a Hugging Face model.

    Args:
        source: Folder of the checkpoint.
        target: Folder of the model to create; must not exist.
        architecture: `auto` for the transformers class that computes the same, or growlm's own class if there is
            none; `growlm` for growlm's own class, which can represent every model.
        dtype: Dtype of the weights; None for that of the files.
        progress: Function called after every tensor.

    Raises:
        UserError: If the source is not a checkpoint, the architecture cannot represent it, the target exists, or
            the disk has too little space. Nothing is left behind.
    """
    source, target = Path(source), Path(target)
    if is_hf_folder(source):
        reason = "is already a Hugging Face model; use to=growlm to convert it to a checkpoint"
        raise UserError(SOURCE_SETTING, source, reason)
    config, record = read_config(source, SOURCE_SETTING)
    files = TensorFiles(source, WEIGHTS_STEM, SOURCE_SETTING)
    check_tensor_shapes(files, get_state_dict_shapes(config), SOURCE_SETTING)
    is_own = architecture == GROWLM.model_type
    chosen = GROWLM if is_own else choose_architecture(config, record, files)
    if chosen is not GROWLM and config.is_moe and config.routing.tie_breaking:
        reason = f"{chosen.class_name} has no such setting; use architecture=growlm"
        raise UserError("routing.tie_breaking", "true", reason)
    tensors = map_to_huggingface(files, config, chosen, dtype)
    name = record.get("tokenizer")
    token_ids = _export_token_ids(source, config, record)

    sidecar_files = list_hf_sidecar_files(source) if name in (None, HUGGINGFACE) else None

    def write_rest(folder: Path) -> None:
        if sidecar_files is None:
            write_builtin_tokenizer(str(name), folder, config.max_seq_len)
        elif isinstance(eos_token := record.get(EOS_TOKEN_ENTRY), str):
            write_eos_token(folder, eos_token)
        write_generation_config(folder, token_ids)
        # Only the source's own pad token: transformers never trains the embedding of the config's pad token.
        pad_token_id = _source_token_ids(record).get("pad_token_id")
        config_ids = {**token_ids, "pad_token_id": pad_token_id}
        kept_record = {k: value for k, value in record.items() if k not in OMITTED_RECORD_KEYS}
        widest = reduce(torch.promote_types, _dtypes(tensors))  # holds all of them exactly
        content = build_hf_config(chosen, config, widest, config_ids, kept_record)
        content |= {key: value for key, value in _origin(record).items() if key in KEPT_KEYS}
        if chosen is GROWLM:
            content["auto_map"] = AUTO_MAP
            _write_remote_code(folder)
        (folder / CONFIG_NAME).write_text(json.dumps(content, indent=2) + "\n")

    _write_folder(tensors, target, sidecar_files or [], write_rest, progress)
    tokenizer = "none: the checkpoint names none" if name is None else f"{name}, as tokenizer.json"
    omitted = ("the optimizer state",) if TensorFiles.exist(source, OPTIMIZER_STEM) else ()
    return ConversionReport(chosen.class_name, config, _dtypes(tensors), tokenizer, omitted)


OMITTED_RECORD_KEYS = ("tokenizer", EOS_TOKEN_ENTRY, "huggingface")
"""Entries of a checkpoint's record that an export stores elsewhere."""


def choose_architecture(
    config: ModelConfig, record: Mapping[str, Any], files: TensorSource | None = None
) -> Architecture:
    """Return the architecture that a checkpoint came from, or else the first that can represent it.

    Args:
        config: Config of the model.
        record: Record of the checkpoint.
        files: Its tensors; if given, an architecture without some of the weights is passed over.
    """
    source_type = _origin(record).get("model_type")
    preferred = [each for each in ARCHITECTURES if each.model_type == source_type]
    return next(
        each
        for each in (*preferred, *ARCHITECTURES)
        if can_represent(each, config) and (files is None or _has_all_weights(each, config, files))
    )


def _has_all_weights(architecture: Architecture, config: ModelConfig, files: TensorSource) -> bool:
    lost = find_lost_tensors(files, config, architecture)
    return not any(mapping.is_weight for mapping in lost.values())


def _origin(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the record's entry about the Hugging Face model that the checkpoint was made from."""
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
        if name is None or EOS_TOKEN_ENTRY not in record:
            return _source_token_ids(record)
        eos_token_id = load_tokenizer(HUGGINGFACE, source, SOURCE_SETTING).eos_token_id
        return _source_token_ids(record) | {"eos_token_id": eos_token_id}
    return dict(get_builtin_token_ids(name, config.vocab_size, source, SOURCE_SETTING))


def _write_folder(
    tensors: MappedTensors,
    target: Path,
    sidecar_files: Sequence[Path],
    write_rest: Callable[[Path], None],
    progress: ByteProgress,
) -> None:
    infos = [tensors.info(name) for name in tensors.names]
    total = sum(info.nbytes for info in infos)
    check_target_folder(target, total, sidecar_files, SOURCE_SETTING)
    with create_target_folder(target) as (partial, digests), torch.no_grad():
        digests |= write_tensors(
            partial, WEIGHTS_STEM, infos, tensors.read, accumulate_progress(progress, total)
        )
        copy_sidecar_files(sidecar_files, partial)
        write_rest(partial)


def _write_remote_code(folder: Path) -> None:
    for module, name in ((CONFIG_MODULE, "GrowLMConfig"), (MODEL_MODULE, "GrowLMForCausalLM")):
        text = '"""Import the class for transformers from growlm (pip install growlm)."""\n\n'
        text += (
            f'from growlm.huggingface.transformers_model import {name}\n\n__all__ = ["{name}"]\n'
        )
        (folder / f"{module}.py").write_text(text)


def _dtypes(tensors: MappedTensors) -> tuple[torch.dtype, ...]:
    return tuple(dict.fromkeys(tensors.info(name).dtype for name in tensors.names))
