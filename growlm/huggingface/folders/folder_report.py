"""Describe a growth of a model folder: what is written, what is exact, and how much memory and disk it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from growlm.growth.growth_map import GrowthMap
from growlm.model.model_size import ParameterReport

if TYPE_CHECKING:
    from growlm.verification.check_report import CheckReport


@dataclass(frozen=True)
class FolderGrowthReport:
    """Summary of a growth of a folder, known before a weight is read."""

    growth_map: GrowthMap
    """Effect of the operators."""
    to: str
    """Kind of the folder that is written: `growlm` or `huggingface`."""
    class_before: str
    """Class of the model before the growth."""
    class_after: str
    """Class of the grown model."""
    own_class_reason: str | None
    """Why the grown model needs growlm's own class; None if it does not."""
    parameters_before: ParameterReport
    parameters_after: ParameterReport
    bytes_before: int
    """Size of the source's weights in bytes."""
    bytes_after: int
    """Size of the tensors that are written."""
    sidecar_bytes: int
    """Size of the files that are copied."""
    peak_memory: int
    """Estimate of the largest resident memory of the process, in bytes."""
    dtypes_before: tuple[torch.dtype, ...]
    """Dtypes of the source's tensors."""
    dtypes: tuple[torch.dtype, ...]
    """Dtypes of the written tensors."""
    sidecar_files: tuple[str, ...]
    """Names of the files that are copied."""
    tokenizer: str
    """Text that says what becomes of the tokenizer."""
    omitted: tuple[str, ...]
    """Parts of the source that the new folder does not have, as text."""
    exactness: tuple[str, ...]
    """What is exact and what is rounded, one statement each."""
    rounding: tuple[str, ...]
    """What half precision rounds, one statement each; none in fp32 and fp64."""
    config_json: Mapping[str, Any]
    """Content of `config.json`."""
    weight_check: CheckReport | None = None
    """Comparison of the written weights with the source's; None if it was not asked for."""


def join_dtypes(dtypes: Sequence[torch.dtype]) -> str:
    """Return the names of dtypes as text: `float32 and bfloat16`."""
    return " and ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
