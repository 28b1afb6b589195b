"""A record of the noise that a growth has drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass
class NoiseLog:
    """The noise of every tensor that got some."""

    levels: dict[tuple[int, str], dict[str, float | bool]] = field(default_factory=dict)
    """By (operator index, tensor name): `sigma` (for a stack, the largest), and whether it was `capped`; in half
    precision also `limited`, the share of weights that were too small for it."""

    def gather(self, mesh: DeviceMesh) -> None:
        """Share what each process has recorded with all of them."""
        gathered: list[Any] = [None] * mesh.size()
        torch.distributed.all_gather_object(gathered, self.levels, group=mesh.get_group())
        self.levels = {key: level for levels in gathered for key, level in levels.items()}

    def summarize(self) -> dict[str, Any]:
        """Return the number of tensors with noise and its range; empty if there was none."""
        if not self.levels:
            return {}
        sigmas = [float(noise["sigma"]) for noise in self.levels.values()]
        summary: dict[str, Any] = {
            "matrices": len(sigmas),
            "sigma_min": min(sigmas),
            "sigma_max": max(sigmas),
            "capped": sum(bool(noise["capped"]) for noise in self.levels.values()),
        }
        if limited := [float(n["limited"]) for n in self.levels.values() if "limited" in n]:
            summary["limited_max"] = max(limited)
        return summary
