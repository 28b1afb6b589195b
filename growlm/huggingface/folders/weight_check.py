"""Compare the weights of a written folder with those they were grown from, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from growlm.checkpoint.checkpoint_folder import WEIGHTS_STEM
from growlm.checkpoint.safetensors_io import TensorFiles, TensorSource
from growlm.growth.growth_map import GrowthMap
from growlm.huggingface.config_reading import is_hf_folder
from growlm.huggingface.lazy_tensors import LastTensorCache
from growlm.huggingface.tensor_conversion import HuggingFaceTensors
from growlm.runtime.errors import RunError
from growlm.verification.check_report import CheckReport
from growlm.verification.weights import find_weight_faults, report_weight_integrity


class _LazyWeights(Mapping[str, Tensor]):
    """Tensors of a source by name; the one that was read last is kept."""

    def __init__(self, source: TensorSource) -> None:
        self._names = source.names
        self._source = LastTensorCache(source)

    def __getitem__(self, name: str) -> Tensor:
        return self._source.read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def check_written_weights(folder: Path, source: TensorSource, growth_map: GrowthMap) -> CheckReport:
    """Read a folder's weights again, and check that each is what the growth map makes of the source's.

    Args:
        folder: Written folder of either kind.
        source: Weights before the growth, in the precision that they were grown in.
        growth_map: Effect of the growth.

    Raises:
        RunError: If a tensor differs from that.
    """
    written: TensorSource
    written = (
        HuggingFaceTensors(folder, "out")
        if is_hf_folder(folder)
        else TensorFiles(folder, WEIGHTS_STEM, "out")
    )
    faults = find_weight_faults(_LazyWeights(source), _LazyWeights(written), growth_map)
    report = report_weight_integrity(faults)
    if not report:
        raise RunError(f"the written weights are wrong: {report.summary}")
    return report
