"""Convert model folders both ways."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from growlm.checkpoint.checkpoint_folder import OPTIMIZER_STEM, WEIGHTS_STEM, read_config
from growlm.checkpoint.offline_growth import ByteProgress
from growlm.checkpoint.safetensors_io import TensorFiles
from growlm.checkpoint.weight_validation import check_tensor_shapes, get_state_dict_shapes
from growlm.huggingface.config_reading import detect_architecture, is_hf_folder, read_hf_config
from growlm.huggingface.folders.prepared_folder import (
    PreparedFolder,
    choose_architecture,
    prepare_growlm_folder,
    prepare_huggingface_folder,
)
from growlm.huggingface.tensor_conversion import HuggingFaceTensors
from growlm.model.config import ModelConfig
from growlm.runtime.errors import UserError

__all__ = ["ConversionReport", "choose_architecture", "to_growlm", "to_huggingface"]

SOURCE_SETTING = "source"


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
    class_name = detect_architecture(source, SOURCE_SETTING).class_name
    prepared = prepare_growlm_folder(source, config, record, tensors, class_name, SOURCE_SETTING)
    prepared.write(target, progress)
    return _report(prepared)


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
    prepared = prepare_huggingface_folder(
        source, config, record, files, SOURCE_SETTING, architecture=architecture, dtype=dtype
    )
    prepared.write(target, progress)
    omitted = ("the optimizer state",) if TensorFiles.exist(source, OPTIMIZER_STEM) else ()
    return _report(prepared, omitted)


def _report(prepared: PreparedFolder, omitted: tuple[str, ...] = ()) -> ConversionReport:
    return ConversionReport(
        prepared.class_name, prepared.config, prepared.dtypes, prepared.tokenizer, omitted
    )
