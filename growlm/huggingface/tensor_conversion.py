"""The tensors of one side's files as the other side has them, by the rules of an architecture."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from growlm.checkpoint.checkpoint_folder import WEIGHTS_STEM
from growlm.checkpoint.safetensors_io import TensorFiles, TensorSource
from growlm.checkpoint.weight_validation import check_tensor_shapes, get_state_dict_shapes
from growlm.huggingface.architecture import Architecture
from growlm.huggingface.config_reading import detect_architecture, read_hf_config
from growlm.huggingface.lazy_tensors import (
    CastTensors,
    DerivedTensor,
    MappedTensors,
    iter_row_chunks,
)
from growlm.huggingface.mapping_rules import MappingRule, ResolvedRule, get_hf_name, resolve_rules
from growlm.huggingface.tensor_mapping import ReadTensor, Shape
from growlm.model.axes import split_block_name
from growlm.model.config import ModelConfig
from growlm.runtime.errors import UserError

PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class HuggingFaceTensors(MappedTensors):
    """The tensors of a Hugging Face folder under our names and in our shapes, checked before the first is read.

    Args:
        folder: With `config.json` and `model.safetensors`, or shards and their index.
        key: What the user calls it, for messages.
        dtype: To convert to; None for that of the files.

    Raises:
        UserError: If the model cannot be ours, or its files do not hold what its config describes.
    """

    def __init__(self, folder: Path, key: str = "source", dtype: torch.dtype | None = None) -> None:
        config, _ = read_hf_config(folder, key)
        architecture = detect_architecture(folder, key)
        files = open_safetensors(folder, key)
        rules = _detect_layout(architecture, config, files)
        shapes = get_state_dict_shapes(config)
        found = resolve_rules(rules, config, shapes)
        present = _FilteredTensors(
            files, _find_ignorable_tensors(files, architecture, rules, config, found)
        )
        expected = {
            name: shape
            for link in found
            for name, shape in zip(link.hf_names, link.hf_shapes, strict=True)
        }
        check_tensor_shapes(present, expected, key)
        source = files if dtype is None else CastTensors(files, dtype)
        super().__init__(source, _derive_growlm_tensors(found, config, shapes))
        self.config = config


def map_to_huggingface(
    files: TensorSource,
    config: ModelConfig,
    architecture: Architecture,
    dtype: torch.dtype | None = None,
) -> MappedTensors:
    """The tensors of a checkpoint of ours as the architecture names and shapes them.

    Args:
        files: Of the checkpoint; they hold what the config describes.
        config: The model's.
        architecture: One that holds the config.
        dtype: To convert to; None for that of the files.

    Raises:
        UserError: If one that the architecture has no place for is not zero.
    """
    found = resolve_rules(architecture.tensor_layouts[0], config, get_state_dict_shapes(config))
    for link in found:
        if not link.hf_names and files.read(link.growlm_names[0]).any():
            allowed = (
                f"{link.growlm_names[0]} is not zero, and {architecture.class_name} has no place for it; "
                "architecture=growlm exports it with a class of growlm's own"
            )
            raise UserError(files.key, files.folder, allowed)
    source = files if dtype is None else CastTensors(files, dtype)
    return MappedTensors(source, _derive_hf_tensors(found, config))


def open_safetensors(folder: Path, key: str) -> TensorFiles:
    """The tensors of a Hugging Face folder, as they are.

    Raises:
        UserError: If there are none, or pickles only.
    """
    if not TensorFiles.exist(folder, WEIGHTS_STEM):
        pickles = sorted(path.name for each in PICKLE_PATTERNS for path in folder.glob(each))
        if pickles:
            allowed = (
                f"has its weights only as {pickles[0]}, a pickle, which can run code when it is read: save the "
                "model as safetensors (save_pretrained does) where you trust the file"
            )
            raise UserError(key, folder, allowed)
    return TensorFiles(folder, WEIGHTS_STEM, key)


def _detect_layout(
    architecture: Architecture, config: ModelConfig, files: TensorFiles
) -> tuple[MappingRule, ...]:
    """The layout that the first block of the files is of; there are enough tensors for all the others.

    Raises:
        UserError: If there are not: before thousands of blocks are built that no file has.
    """
    first = dataclasses.replace(config, n_layers=1)
    shapes = get_state_dict_shapes(first)
    layouts = {rules: resolve_rules(rules, first, shapes) for rules in architecture.tensor_layouts}
    present = set(files.names)

    def num_known(rules: tuple[MappingRule, ...]) -> int:
        return len(present.intersection(name for link in layouts[rules] for name in link.hf_names))

    best = max(layouts, key=num_known)
    in_a_block = [
        link for link in layouts[best] if split_block_name(link.growlm_names[0])[0] is not None
    ]
    if len(present) < config.n_layers * sum(len(link.hf_names) for link in in_a_block):
        allowed = f"{len(present)} tensors are no {config.n_layers} layers, as config.json says"
        raise UserError(files.key, files.folder, allowed)
    return best


def _find_ignorable_tensors(
    files: TensorFiles,
    architecture: Architecture,
    rules: tuple[MappingRule, ...],
    config: ModelConfig,
    found: Sequence[ResolvedRule],
) -> set[str]:
    """Tensors that say nothing: stored tables, and a copy of the embedding beside it."""
    known = {name for link in found for name in link.hf_names}
    patterns = [re.compile(pattern) for pattern in architecture.ignored_tensors]
    names = {name for name in files.names if any(p.fullmatch(name) for p in patterns)} - known
    head, embedding = (get_hf_name(rules, f"{name}.weight") for name in ("head", "embedding"))
    if config.tie_embeddings and head in files.names and embedding in files.names:
        if not _tensors_equal(files, head, embedding):
            allowed = f"tie_word_embeddings is true, but {head} is not {embedding}"
            raise UserError(files.key, files.folder, allowed)
        names.add(head)
    return names


def _tensors_equal(files: TensorFiles, first: str, second: str) -> bool:
    """Whether two tensors are the same, a few rows at a time."""
    one, other = files.info(first), files.info(second)
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return all(
        torch.equal(files.read(first)[start:stop], files.read(second)[start:stop])
        for start, stop in iter_row_chunks(one.shape)
    )


class _FilteredTensors:
    """Some files less some names, for the check of shapes."""

    def __init__(self, files: TensorFiles, left_out: set[str]) -> None:
        self.folder, self.key, self.info = files.folder, files.key, files.info
        self.names = [name for name in files.names if name not in left_out]
        self.read, self.read_rows = files.read, files.read_rows


def _derive_growlm_tensors(
    found: Sequence[ResolvedRule], config: ModelConfig, shapes: Mapping[str, Shape]
) -> dict[str, DerivedTensor]:
    made = {
        name: DerivedTensor(
            link.hf_names, shapes[name], partial(_make_growlm_tensor, link, config, index)
        )
        for link in found
        for index, name in enumerate(link.growlm_names)
    }
    return {name: made[name] for name in shapes}


def _derive_hf_tensors(
    found: Sequence[ResolvedRule], config: ModelConfig
) -> dict[str, DerivedTensor]:
    return {
        name: DerivedTensor(link.growlm_names, shape, partial(_make_hf_tensor, link, config, index))
        for link in found
        for index, (name, shape) in enumerate(zip(link.hf_names, link.hf_shapes, strict=True))
    }


def _make_growlm_tensor(
    link: ResolvedRule, config: ModelConfig, index: int, parts: Sequence[ReadTensor]
) -> Tensor:
    return link.mapping.make_growlm_tensor(config, parts, index)


def _make_hf_tensor(
    link: ResolvedRule, config: ModelConfig, index: int, parts: Sequence[ReadTensor]
) -> Tensor:
    return link.mapping.make_hf_tensor(config, parts, index)
