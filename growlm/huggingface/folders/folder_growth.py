"""Grow a model folder of either kind into one of either kind, without a folder in between.

Weights pass through a chain of tensor sources: the files, under growlm's names; grown; under the names of the
class that is written. Each tensor is computed when it is written, so memory holds about one at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from growlm.checkpoint.cast_tensors import CastTensors
from growlm.checkpoint.checkpoint_folder import (
    OPTIMIZER_STEM,
    WEIGHTS_STEM,
    read_config,
    read_skeleton,
)
from growlm.checkpoint.grown_tensors import GrownTensors
from growlm.checkpoint.offline_growth import (
    ByteProgress,
    CheckpointGrowth,
    describe_growth,
    prepare_checkpoint_growth,
)
from growlm.checkpoint.safetensors_io import TensorFiles, TensorInfo, TensorSource
from growlm.checkpoint.weight_validation import check_tensor_shapes, get_state_dict_shapes
from growlm.growth.grow_model import Operator, build_growth_map, resolve_ties
from growlm.growth.growth_rng import GrowthRng
from growlm.huggingface.architectures import GROWLM
from growlm.huggingface.config_reading import detect_architecture, is_hf_folder, read_hf_config
from growlm.huggingface.config_writing import explain_own_class
from growlm.huggingface.folders.exactness import describe_conversion, describe_exactness
from growlm.huggingface.folders.folder_report import FolderGrowthReport
from growlm.huggingface.folders.model_card import CardContent, write_model_card
from growlm.huggingface.folders.peak_memory import estimate_peak_memory
from growlm.huggingface.folders.prepared_folder import (
    PreparedFolder,
    prepare_growlm_folder,
    prepare_huggingface_folder,
)
from growlm.huggingface.lazy_tensors import LastTensorCache
from growlm.huggingface.tensor_conversion import HuggingFaceTensors
from growlm.model.config import ModelConfig
from growlm.model.model_size import parameter_report
from growlm.model.transformer import TransformerLM
from growlm.runtime.errors import UserError
from growlm.storage.sidecar_files import sidecar_bytes

CHECKPOINT_SETTING = "checkpoint"
KINDS = ("growlm", "huggingface")


@dataclass(frozen=True)
class FolderGrowth:
    """A growth of a folder that has been checked; nothing is written yet."""

    report: FolderGrowthReport
    rng: GrowthRng
    source: Path
    weights: TensorSource
    """Weights before the growth."""
    target: PreparedFolder | CheckpointGrowth
    grown_from: Mapping[str, Any]
    """Operators, seed and index of the growth."""
    earlier: Mapping[str, Any] | None
    """The same of the growth that made the source; None if it was not grown."""

    def write(
        self,
        target: Path,
        progress: ByteProgress = lambda done, total: None,
        verify: bool = False,
    ) -> FolderGrowthReport:
        """Write the grown model's folder and return the report.

        Args:
            target: Folder to create; must not exist.
            progress: Function called after every tensor.
            verify: Whether to read the written weights again and compare each with its source.

        Raises:
            UserError: If the target exists, or the disk has too little space. Nothing is left behind.
            RunError: If a written tensor is not what the growth makes of its source; likewise.
        """
        report = self.report

        def finish(folder: Path) -> None:
            nonlocal report
            if verify:
                # Imported only here: the checks take longer to import than a small folder to grow.
                from growlm.huggingface.folders.weight_check import check_written_weights

                check = check_written_weights(folder, self.weights, report.growth_map)
                report = replace(report, weight_check=check)
            if report.to == "huggingface":
                content = CardContent(report, self.grown_from, self.earlier)
                write_model_card(folder, content, self.source)

        with self.rng:
            self.target.write(target, progress, finish)
        return report


def grow_folder(
    source: str | Path,
    target: str | Path,
    operators: Sequence[Operator],
    *,
    to: str | None = None,
    dtype: torch.dtype | None = None,
    architecture: str = "auto",
    seed: int = 0,
    boundary_index: int = 0,
    optimizer_state: str | None = None,
    trust: Sequence[str] = (),
    verify: bool = False,
    progress: ByteProgress = lambda done, total: None,
) -> FolderGrowthReport:
    """Grow a model folder into a new one, about one tensor in memory at a time.

    Args:
        source: Folder of a growlm checkpoint or a Hugging Face model.
        target: Folder to create; must not exist.
        operators: Growth operators, applied in order.
        to: Kind of the new folder, `growlm` or `huggingface`; None for that of the source.
        dtype: Dtype that the weights are converted to before they are grown; None for that of the files.
        architecture: For a Hugging Face folder: `auto` for the transformers class that computes the same, or
            growlm's own class if there is none; `growlm` for growlm's own class.
        seed: Seed of noise, routers and filler columns.
        boundary_index: Index of this growth in its run; part of the seed.
        optimizer_state: `carry` to grow a checkpoint's optimizer state too, `reset` to leave it out; None to carry
            it where there is one and the new folder can hold it.
        trust: Packages whose classes may be built, if a checkpoint names one.
        verify: Whether to read the written weights again and compare each with its source.
        progress: Function called after every tensor.

    Raises:
        UserError: If the source cannot be read, an operator cannot be applied, the target exists, or the disk has
            too little space. Nothing is left behind.
        RunError: If a written tensor is not what the growth makes of its source; likewise.
    """
    growth = prepare_folder_growth(
        Path(source),
        operators,
        to=to,
        dtype=dtype,
        architecture=architecture,
        seed=seed,
        boundary_index=boundary_index,
        optimizer_state=optimizer_state,
        trust=trust,
    )
    return growth.write(Path(target), progress, verify)


def prepare_folder_growth(
    source: Path,
    operators: Sequence[Operator],
    *,
    to: str | None = None,
    dtype: torch.dtype | None = None,
    architecture: str = "auto",
    seed: int = 0,
    boundary_index: int = 0,
    optimizer_state: str | None = None,
    trust: Sequence[str] = (),
    key: str = CHECKPOINT_SETTING,
    checks_values: bool = True,
) -> FolderGrowth:
    """Check a growth of a folder; see `grow_folder`.

    Args:
        source: Folder of a growlm checkpoint or a Hugging Face model.
        operators: Growth operators, applied in order.
        to: Kind of the new folder; None for that of the source.
        dtype: Dtype that the weights are converted to before they are grown; None for that of the files.
        architecture: `auto` or `growlm`, for a Hugging Face folder.
        seed: Seed of noise, routers and filler columns.
        boundary_index: Index of this growth in its run; part of the seed.
        optimizer_state: `carry`, `reset` or None.
        trust: Packages whose classes may be built, if a checkpoint names one.
        key: Setting that named the source, for messages.
        checks_values: Whether to make the checks that read weights, and to compare checksums; if false, only the
            headers of the files are read.

    Raises:
        UserError: If the source cannot be read, an operator cannot be applied, or a setting does not apply to the
            kinds of folders.
    """
    is_hf = is_hf_folder(source)
    to = to or ("huggingface" if is_hf else "growlm")
    _check_settings(is_hf, to, architecture, optimizer_state, trust)
    seed_settings = {"seed": seed, "boundary_index": boundary_index}
    if not is_hf and to == "growlm":
        return _prepare_checkpoint(
            source,
            prepare_checkpoint_growth(
                source,
                operators,
                **seed_settings,
                optimizer_state=optimizer_state or "carry",
                dtype=dtype,
                trust=trust,
                key=key,
                checks_values=checks_values,
            ),
        )
    model = _open_source(source, is_hf, dtype, key, trust, checks_values)
    growth_map = build_growth_map(model.config, operators)
    with torch.device("meta"):
        ties = resolve_ties(TransformerLM(growth_map.new_config), growth_map)
    rng = GrowthRng(seed, boundary_index)
    grown = GrownTensors(model.tensors, growth_map, rng, ties)
    record = model.record | {"grown_from": describe_growth(operators, **seed_settings)}
    config = growth_map.new_config
    own_class_reason = None
    if to == "huggingface":
        prepared = prepare_huggingface_folder(
            source,
            config,
            record,
            LastTensorCache(grown),
            key,
            architecture=architecture,
            checks_values=checks_values,
        )
        if prepared.class_name == GROWLM.class_name:
            asked = architecture == GROWLM.model_type
            own_class_reason = "architecture=growlm" if asked else explain_own_class(config)
    else:
        prepared = prepare_growlm_folder(source, config, record, grown, "TransformerLM", key)
    has_states = not is_hf and TensorFiles.exist(source, OPTIMIZER_STEM)
    dtypes = {name: grown.info(name).dtype for name in grown.names}
    source_infos = _read_stored_infos(source, key)
    converted = describe_conversion({info.dtype for info in source_infos}, dtypes.values())
    report = FolderGrowthReport(
        growth_map=growth_map,
        to=to,
        class_before=model.class_name,
        class_after=prepared.class_name,
        own_class_reason=own_class_reason,
        parameters_before=parameter_report(model.config),
        parameters_after=parameter_report(config),
        bytes_before=sum(info.nbytes for info in source_infos),
        bytes_after=sum(info.nbytes for info in prepared.infos),
        sidecar_bytes=sidecar_bytes(prepared.sidecar_files),
        peak_memory=estimate_peak_memory(growth_map, model.tensors, grown, prepared.tensors),
        dtypes_before=tuple(dict.fromkeys(info.dtype for info in source_infos)),
        dtypes=prepared.dtypes,
        sidecar_files=tuple(path.name for path in prepared.sidecar_files),
        tokenizer=prepared.tokenizer,
        omitted=("the optimizer state",) if has_states else (),
        exactness=(
            *(f"{line}." for line in converted),
            *describe_exactness(growth_map, dtypes),
        ),
        rounding=(*converted, *growth_map.describe_rounding(dtypes)),
        config_json=prepared.content,
    )
    earlier = model.record.get("grown_from")
    earlier = earlier if _is_growth(earlier) else None
    return FolderGrowth(report, rng, source, model.tensors, prepared, record["grown_from"], earlier)


def _is_growth(entry: Any) -> bool:
    """Return whether an entry of a record, which may come from anywhere, describes a growth."""
    operators = entry.get("operators") if isinstance(entry, dict) else None
    return isinstance(operators, list) and all(
        isinstance(each, dict) and all(isinstance(values, dict) for values in each.values())
        for each in operators
    )


@dataclass(frozen=True)
class _Source:
    """A model folder of either kind, under growlm's names."""

    config: ModelConfig
    record: dict[str, Any]
    class_name: str
    tensors: TensorSource


def _open_source(
    source: Path,
    is_hf: bool,
    dtype: torch.dtype | None,
    key: str,
    trust: Sequence[str],
    checks_values: bool,
) -> _Source:
    if is_hf:
        config, record = read_hf_config(source, key)
        tensors = HuggingFaceTensors(source, key, dtype, checks_values=checks_values)
        return _Source(config, record, detect_architecture(source, key).class_name, tensors)
    skeleton, _ = read_skeleton(source, key, trust)
    if type(skeleton) is not TransformerLM or type(skeleton.config) is not ModelConfig:
        reason = (
            f"a model of the class {type(skeleton).__name__} can only be written with to=growlm"
        )
        raise UserError("to", "huggingface", reason)
    config, record = read_config(source, key)
    files = TensorFiles(source, WEIGHTS_STEM, key, is_checked=not checks_values)
    check_tensor_shapes(files, get_state_dict_shapes(config), key)
    cast: TensorSource = files if dtype is None else CastTensors(files, dtype)
    return _Source(config, record, "TransformerLM", cast)


def _read_stored_infos(source: Path, key: str) -> list[TensorInfo]:
    """Read the dtypes and shapes of the weights as they lie on the disk, before they are converted."""
    files = TensorFiles(source, WEIGHTS_STEM, key, is_checked=True)
    return [files.info(name) for name in files.names]


def _check_settings(
    is_hf: bool, to: str, architecture: str, optimizer_state: str | None, trust: Sequence[str]
) -> None:
    """Check that settings apply to the kinds of folders.

    Raises:
        UserError: For the first that does not.
    """
    if to not in KINDS:
        raise UserError("to", to, f"must be one of {', '.join(KINDS)}")
    if architecture not in ("auto", GROWLM.model_type):
        raise UserError("architecture", architecture, f"must be auto or {GROWLM.model_type}")
    if architecture != "auto" and to == "growlm":
        raise UserError(
            "architecture", architecture, "applies to to=huggingface only; leave it out"
        )
    if optimizer_state not in (None, "carry", "reset"):
        raise UserError("optimizer_state", optimizer_state, "must be carry or reset")
    if optimizer_state == "carry" and (is_hf or to == "huggingface"):
        reason = "a Hugging Face folder has no optimizer state; leave the setting out"
        raise UserError("optimizer_state", optimizer_state, reason)
    if trust and is_hf:
        reason = "applies to growlm checkpoints; code of a Hugging Face folder is never run"
        raise UserError("trust", list(trust), reason)


def _prepare_checkpoint(source: Path, growth: CheckpointGrowth) -> FolderGrowth:
    """Describe a growth from a checkpoint to a checkpoint."""
    infos: list[TensorInfo] = growth.infos
    weights = growth.weights
    dtypes = {name: weights.info(name).dtype for name in weights.names}
    before: nn.Module = growth.model
    source_infos = _read_stored_infos(source, growth.source.key)
    converted = describe_conversion({info.dtype for info in source_infos}, dtypes.values())
    report = FolderGrowthReport(
        growth_map=growth.growth_map,
        to="growlm",
        class_before=type(before).__name__,
        class_after=type(growth.grown).__name__,
        own_class_reason=None,
        parameters_before=parameter_report(before),
        parameters_after=parameter_report(growth.grown),
        bytes_before=sum(info.nbytes for info in source_infos),
        bytes_after=sum(info.nbytes for info in infos),
        sidecar_bytes=sidecar_bytes(growth.sidecar_files),
        peak_memory=estimate_peak_memory(growth.growth_map, growth.source, weights, weights),
        dtypes_before=tuple(dict.fromkeys(info.dtype for info in source_infos)),
        dtypes=tuple(dict.fromkeys(dtypes.values())),
        sidecar_files=tuple(path.name for path in growth.sidecar_files),
        tokenizer=str(growth.record.get("tokenizer", "none: the checkpoint names none")),
        omitted=growth.omitted,
        exactness=(
            *(f"{line}." for line in converted),
            *describe_exactness(growth.growth_map, dtypes),
        ),
        rounding=(*converted, *growth.growth_map.describe_rounding(dtypes)),
        config_json=growth.content,
    )
    grown_from = growth.record["grown_from"]
    return FolderGrowth(report, growth.rng, source, growth.source, growth, grown_from, None)
