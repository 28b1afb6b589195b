"""Convert tensors between growlm's and Hugging Face's names and shapes, by an architecture's rules."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from growlm.checkpoint.cast_tensors import CastTensors, iter_row_chunks
from growlm.checkpoint.checkpoint_folder import WEIGHTS_STEM
from growlm.checkpoint.safetensors_io import TensorFiles, TensorSource
from growlm.checkpoint.weight_validation import check_tensor_shapes, get_state_dict_shapes
from growlm.huggingface.architecture import Architecture
from growlm.huggingface.config_reading import detect_architecture, read_hf_config
from growlm.huggingface.lazy_tensors import DerivedTensor, MappedTensors
from growlm.huggingface.mapping_rules import MappingRule, ResolvedRule, get_hf_name, resolve_rules
from growlm.huggingface.tensor_mapping import (
    AbsentMapping,
    IdentityMapping,
    ReadTensor,
    Shape,
)
from growlm.model.axes import split_block_name
from growlm.model.config import ModelConfig
from growlm.runtime.errors import UserError

PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class HuggingFaceTensors(MappedTensors):
    """Tensors of a Hugging Face folder under growlm's names and in growlm's shapes; validated, read on request.

    Args:
        folder: Folder with `config.json` and `model.safetensors`, or shards and their index.
        key: Setting that named the folder, for messages.
        dtype: Dtype to convert to; None for that of the files.
        checks_values: Whether to read tensors whose values decide if growlm can represent the model, and to
            compare checksums; if false, only headers are read.

    Raises:
        UserError: If growlm cannot represent the model, or its files do not match its config.
    """

    def __init__(
        self,
        folder: Path,
        key: str = "source",
        dtype: torch.dtype | None = None,
        *,
        checks_values: bool = True,
    ) -> None:
        config, _ = read_hf_config(folder, key)
        files = open_safetensors(folder, key, is_checked=not checks_values)
        architecture = detect_architecture(folder, key)
        derived = _check_and_derive(files, config, architecture, checks_values)
        super().__init__(files if dtype is None else CastTensors(files, dtype), derived)
        self.config = config


def map_to_growlm(
    files: TensorSource, config: ModelConfig, architecture: Architecture
) -> MappedTensors:
    """Return a Hugging Face model's tensors under growlm's names and in growlm's shapes.

    Args:
        files: Tensors of the model, in any of the architecture's layouts.
        config: Config of the model.
        architecture: Architecture of the model.

    Raises:
        UserError: If the tensors do not match the config.
    """
    return MappedTensors(files, _check_and_derive(files, config, architecture))


def _check_and_derive(
    files: TensorSource,
    config: ModelConfig,
    architecture: Architecture,
    checks_values: bool = True,
) -> dict[str, DerivedTensor]:
    rules = _read_tied_head(_detect_layout(architecture, config, files), config, files)
    shapes = get_state_dict_shapes(config)
    resolved = resolve_rules(rules, config, shapes)
    ignored = _find_ignorable_tensors(files, architecture, rules, config, resolved, checks_values)
    expected = {
        name: shape
        for rule in resolved
        for name, shape in zip(rule.hf_names, rule.hf_shapes, strict=True)
    }
    check_tensor_shapes(_FilteredTensors(files, ignored), expected, files.key)
    if checks_values:
        _check_zeros(files, resolved)
    return _derive_growlm_tensors(resolved, config, shapes)


def map_to_huggingface(
    files: TensorSource,
    config: ModelConfig,
    architecture: Architecture,
    dtype: torch.dtype | None = None,
    layout: Sequence[MappingRule] = (),
    *,
    checks_values: bool = True,
) -> MappedTensors:
    """Return a growlm model's tensors under the names and in the shapes of an architecture.

    Args:
        files: Validated tensors of the model.
        config: Config of the model.
        architecture: Architecture that can represent the config.
        dtype: Dtype to convert to; None for that of the files.
        layout: Rules of one of the architecture's layouts; the one of files if not given.
        checks_values: Whether to read tensors that the architecture does not have, of which its class implies the
            values.

    Raises:
        UserError: If a tensor that the architecture does not have is not what its class computes as if it had.
    """
    rules = layout or architecture.tensor_layouts[0]
    resolved = resolve_rules(rules, config, get_state_dict_shapes(config))
    lost = find_lost_tensors(files, config, architecture) if checks_values else {}
    for name, mapping in lost.items():
        reason = (
            f"{name} is not {'one' if mapping.value else 'zero'}, and {architecture.class_name} has no such "
            "tensor; use architecture=growlm to export it with growlm's own class"
        )
        raise UserError(files.key, files.folder, reason)
    source = files if dtype is None else CastTensors(files, dtype)
    return MappedTensors(source, _derive_hf_tensors(resolved, config))


def find_lost_tensors(
    files: TensorSource, config: ModelConfig, architecture: Architecture
) -> dict[str, AbsentMapping]:
    """Return the tensors that an architecture does not have although the model depends on their values.

    Args:
        files: Tensors of the checkpoint.
        config: Config of the model.
        architecture: Architecture that can represent the config.

    Returns:
        The mapping of each tensor whose values are others than the architecture's class implies.
    """
    lost: dict[str, AbsentMapping] = {}
    rules = architecture.tensor_layouts[0]
    if all(rule.hf_name for rule in rules):
        return lost
    for rule in resolve_rules(rules, config, get_state_dict_shapes(config)):
        if not rule.hf_names:
            (name,), mapping = rule.growlm_names, rule.mapping
            assert isinstance(mapping, AbsentMapping)  # no other mapping has no tensor
            if bool((files.read(name) != mapping.value).any()):
                lost[name] = mapping
    return lost


def open_safetensors(folder: Path, key: str, *, is_checked: bool = False) -> TensorFiles:
    """Open the safetensors files of a Hugging Face folder.

    Args:
        folder: Folder of the model.
        key: Setting that named the folder, for messages.
        is_checked: Whether to skip the comparison of checksums.

    Raises:
        UserError: If there are none, or only pickle files.
    """
    if not TensorFiles.exist(folder, WEIGHTS_STEM):
        pickles = sorted(path.name for each in PICKLE_PATTERNS for path in folder.glob(each))
        if pickles:
            reason = (
                f"has its weights only in {pickles[0]}, a pickle file, which can run code when it is loaded; "
                "if you trust it, save the model as safetensors (save_pretrained does)"
            )
            raise UserError(key, folder, reason)
    return TensorFiles(folder, WEIGHTS_STEM, key, is_checked)


def _detect_layout(
    architecture: Architecture, config: ModelConfig, files: TensorSource
) -> tuple[MappingRule, ...]:
    """Return the tensor layout that matches the first block of each kind: mixture and dense.

    Raises:
        UserError: If the files have too few tensors for all blocks; raised before thousands of blocks are built.
    """
    kinds = {config.is_mixture(block): block for block in reversed(range(config.n_layers))}
    present = set(files.names)

    def count_known(rules: tuple[MappingRule, ...]) -> int:
        resolved = [rule for block in kinds.values() for rule in _resolve(rules, config, block)]
        names = {name for rule in resolved for name in rule.hf_names}
        return len(present & {*names, get_hf_name(rules, "head.weight")})  # a tied one may be there

    best = max(architecture.tensor_layouts, key=count_known)
    sizes = [
        sum(
            len(rule.hf_names)
            for rule in _resolve(best, config, block)
            if rule.growlm_names and split_block_name(rule.growlm_names[0])[0] is not None
        )
        for block in kinds.values()
    ]
    if len(present) < config.n_layers * min(sizes):
        reason = (
            f"has {len(present)} tensors, too few for the {config.n_layers} layers of its config"
        )
        raise UserError(files.key, files.folder, reason)
    return best


def _resolve(
    rules: tuple[MappingRule, ...], config: ModelConfig, block: int
) -> tuple[ResolvedRule, ...]:
    """Return the rules of one block and of the tensors outside the blocks."""
    part = config.with_blocks([block])
    shapes = get_state_dict_shapes(part)
    here = {name.replace("blocks.0.", f"blocks.{block}."): shapes[name] for name in shapes}
    return resolve_rules(rules, part, here)


def _read_tied_head(
    rules: tuple[MappingRule, ...], config: ModelConfig, files: TensorSource
) -> tuple[MappingRule, ...]:
    """Return the rules with the head in place of the embedding, where a tied model stores only the head."""
    head, embedding = (get_hf_name(rules, f"{name}.weight") for name in ("head", "embedding"))
    if not config.tie_embeddings or embedding in files.names or head not in files.names:
        return rules
    return tuple(replace(r, hf_name=head) if r.hf_name == embedding else r for r in rules)


def _check_zeros(files: TensorSource, resolved: Sequence[ResolvedRule]) -> None:
    """Check that tensors that growlm's model does not have are zero.

    Raises:
        UserError: If one is not.
    """
    for rule in resolved:
        for name in rule.hf_names if not rule.growlm_names else ():
            if bool(files.read(name).any()):
                reason = f"{name} is not zero: its config.json says that it has no effect"
                raise UserError(files.key, files.folder, reason)


def _find_ignorable_tensors(
    files: TensorSource,
    architecture: Architecture,
    rules: tuple[MappingRule, ...],
    config: ModelConfig,
    resolved: Sequence[ResolvedRule],
    checks_values: bool,
) -> set[str]:
    """Return the names of tensors to ignore: stored tables, and a head that repeats a tied embedding."""
    known = {name for rule in resolved for name in rule.hf_names}
    patterns = [re.compile(pattern) for pattern in architecture.ignored_tensors]
    names = {name for name in files.names if any(p.fullmatch(name) for p in patterns)} - known
    head, embedding = (get_hf_name(rules, f"{name}.weight") for name in ("head", "embedding"))
    if config.tie_embeddings and head != embedding and {head, embedding} <= set(files.names):
        if checks_values and not _tensors_equal(files, head, embedding):
            reason = f"tie_word_embeddings is true, but {head} differs from {embedding}"
            raise UserError(files.key, files.folder, reason)
        names.add(head)
    return names


def _tensors_equal(files: TensorSource, first: str, second: str) -> bool:
    """Return whether two tensors are equal, comparing some rows at a time to save memory."""
    first_info, second_info = files.info(first), files.info(second)
    if (first_info.shape, first_info.dtype) != (second_info.shape, second_info.dtype):
        return False
    return all(
        torch.equal(files.read(first)[start:stop], files.read(second)[start:stop])
        for start, stop in iter_row_chunks(first_info.shape)
    )


class _FilteredTensors:
    """`TensorSource` without some of the tensors of another one, for the check of shapes."""

    def __init__(self, files: TensorSource, excluded: set[str]) -> None:
        self.folder, self.key, self.info = files.folder, files.key, files.info
        self.names = [name for name in files.names if name not in excluded]
        self.read, self.read_rows = files.read, files.read_rows


def _derive_growlm_tensors(
    resolved: Sequence[ResolvedRule], config: ModelConfig, shapes: Mapping[str, Shape]
) -> dict[str, DerivedTensor]:
    any_name = next(rule.hf_names[0] for rule in resolved if rule.hf_names)
    derived = {
        name: DerivedTensor(
            rule.hf_names,
            shapes[name],
            partial(_make_growlm_tensor, rule, config, index),
            dtype_of=any_name if _is_absent_weight(rule) else None,
            is_copy=isinstance(rule.mapping, IdentityMapping),
        )
        for rule in resolved
        for index, name in enumerate(rule.growlm_names)
    }
    return {name: derived[name] for name in shapes}


def _is_absent_weight(rule: ResolvedRule) -> bool:
    return isinstance(rule.mapping, AbsentMapping) and rule.mapping.is_weight


def _derive_hf_tensors(
    resolved: Sequence[ResolvedRule], config: ModelConfig
) -> dict[str, DerivedTensor]:
    # Zeros take the precision of a matrix, and a small one, as reading it may mean computing it.
    matrices = [
        rule
        for rule in resolved
        if rule.growlm_names and any(len(s) == 2 for s in rule.hf_shapes[:1])
    ]
    smallest = min(matrices, key=lambda rule: math.prod(rule.hf_shapes[0])).growlm_names[:1]
    return {
        name: DerivedTensor(
            rule.growlm_names or smallest,
            shape,
            partial(_make_hf_tensor, rule, config, index),
            is_copy=isinstance(rule.mapping, IdentityMapping),
        )
        for rule in resolved
        for index, (name, shape) in enumerate(zip(rule.hf_names, rule.hf_shapes, strict=True))
    }


def _make_growlm_tensor(
    rule: ResolvedRule, config: ModelConfig, index: int, sources: Sequence[ReadTensor]
) -> Tensor:
    return rule.mapping.make_growlm_tensor(config, sources, index)


def _make_hf_tensor(
    rule: ResolvedRule, config: ModelConfig, index: int, sources: Sequence[ReadTensor]
) -> Tensor:
    return rule.mapping.make_hf_tensor(config, sources, index)
