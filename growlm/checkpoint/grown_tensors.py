"""Weights of a grown model, each computed when it is read from those of the model before the growth."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from growlm.checkpoint.safetensors_io import TensorInfo, TensorSource
from growlm.growth.growth_map import GrowthMap
from growlm.growth.growth_rng import GrowthRng


class GrownTensors:
    """`TensorSource` of a grown model's weights; nothing is kept between two reads.

    Args:
        source: Validated weights of the model before the growth.
        growth_map: Growth of that model.
        rng: Generator of the random entries, entered by the caller while tensors are read.
        ties: For each tensor of the grown model, the name that it is made under, as `resolve_ties` returns.
    """

    def __init__(
        self, source: TensorSource, growth_map: GrowthMap, rng: GrowthRng, ties: Mapping[str, str]
    ) -> None:
        self.folder, self.key = source.folder, source.key
        self._source, self._growth_map, self._rng, self._ties = source, growth_map, rng, ties
        self._any_name = source.names[0]
        self._infos = {
            name: TensorInfo(name, source.info(each.source or self._any_name).dtype, each.shape)
            for name, each in growth_map.tensors.items()
        }

    @property
    def names(self) -> list[str]:
        """Names of all tensors, in the order of the grown model."""
        return list(self._infos)

    def info(self, name: str) -> TensorInfo:
        """Return the dtype and shape of a tensor."""
        return self._infos[name]

    def copied_from(self, name: str) -> tuple[TensorSource, str] | None:
        """Return the source of a tensor that stays as it is; None for one that is computed."""
        tensor_map = self._growth_map.tensors[self._ties[name]]
        if tensor_map.keeps_weight and tensor_map.source is not None:
            return self._source, tensor_map.source
        return None

    def read(self, name: str) -> Tensor:
        """Compute a tensor: its source is read, and grown; one that stays as it is is copied."""
        tensor_map = self._growth_map.tensors[self._ties[name]]
        return tensor_map.grow_weight(
            self._source.read(tensor_map.source or self._any_name), self._rng
        )

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Compute a tensor and return its rows from `start` up to `stop`."""
        return self.read(name)[start:stop]
