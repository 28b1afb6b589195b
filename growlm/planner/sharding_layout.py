"""Compute how much of a phase's model one device holds under each strategy.

`ddp`: everything. `fsdp` (FSDP2): its rows of every tensor, and during a pass the unsharded weights of the active
blocks. `expert` (expert parallelism, estimated but not yet supported in training): its own experts and everything
else. The formulas are in docs/planner.md.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from growlm.config.phase_plan import PlannedPhase
from growlm.config.schema import TrainerConfig
from growlm.growth.model_protocol import axes_table_from_config
from growlm.model.axes import split_block_name
from growlm.model.config import ModelConfig
from growlm.model.transformer import TransformerLM
from growlm.runtime.hardware import Machine

STRATEGIES = ("ddp", "fsdp", "expert")
MAX_UNSHARDED_BLOCKS = 2
"""Unsharded blocks held under fsdp: the active one, and the next one, which is prefetched."""


@dataclass(frozen=True)
class ShardingLayout:
    """Distribution of a model over the devices of a run."""

    strategy: str
    """`ddp`, `fsdp` or `expert`; all are the same on one device."""
    num_devices: int
    bytes_per_element: int
    """Bytes per element of weights, gradients and moments."""
    bytes_per_compute_element: int
    """Bytes per element of the inputs of matrix products, such as tokens sent to an expert."""

    @property
    def gathers_weights(self) -> bool:
        """Whether weights are gathered for each pass."""
        return self.strategy == "fsdp" and self.num_devices > 1

    def expert_parallel_size(self, model: ModelConfig) -> int:
        """Return how many devices share the experts of a layer; other devices form further such groups."""
        if self.strategy != "expert" or not model.is_moe:
            return 1
        return math.gcd(self.num_devices, model.num_experts)

    def local_shapes(self, model: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor on the device that holds most."""
        shapes = {}
        experts = self.expert_parallel_size(model)
        for name, row in axes_table_from_config(model, TransformerLM).items():
            parts = self.num_devices if self.gathers_weights else 1
            if row.label.stacked_from is not None:
                parts *= experts
            # FSDP2 shards only the first dimension, and pads it if it does not divide evenly.
            shapes[name] = (-(-row.shape[0] // parts), *row.shape[1:])
        return shapes

    def weight_bytes(self, phase: PlannedPhase) -> int:
        """Return the bytes of the weights that a device holds; its gradients are as large."""
        if self.num_devices == 1 or self.strategy == "ddp":
            return self.bytes_per_element * phase.parameter_report.total
        return self.bytes_per_element * sum(
            map(math.prod, self.local_shapes(phase.model_config).values())
        )

    def expert_bytes(self, model: ModelConfig) -> int:
        """Return the bytes of the expert weights that a device holds."""
        table = axes_table_from_config(model, TransformerLM)
        shapes = self.local_shapes(model)
        stacked = (n for n, row in table.items() if row.label.stacked_from is not None)
        return self.bytes_per_element * sum(math.prod(shapes[name]) for name in stacked)

    def unsharded_sizes(self, model: ModelConfig) -> UnshardedSizes:
        """Return the sizes of the unsharded weights on one device during a pass; zero except under fsdp."""
        if not self.gathers_weights:
            return UnshardedSizes(0, 0, 0, 0)
        root = largest = 0
        blocks: Counter[int] = Counter()
        for name, shape in self.local_shapes(model).items():
            entries = self.num_devices * math.prod(shape)
            index, _ = split_block_name(name)
            if index is None:
                root += entries
            else:
                blocks[index] += entries
            largest = max(largest, entries)
        return UnshardedSizes(root, max(blocks.values()), blocks.total(), largest)

    def unsharded_pass_bytes(
        self, model: ModelConfig, unsharded_blocks: int = MAX_UNSHARDED_BLOCKS
    ) -> int:
        """Return the peak bytes of unsharded weights and gradients in a pass, beside what the device holds.

        Args:
            model: Config of the model.
            unsharded_blocks: Number of blocks whose weights are unsharded at once.
        """
        whole = self.unsharded_sizes(model)
        # In the backward pass, a block has its gradients and a copy of them that is being reduced over the
        # devices. The root's weights and gradients stay until the end, when they are reduced themselves.
        in_block = (
            2 * whole.root_elements
            + (min(unsharded_blocks, model.n_layers) + 2) * whole.block_elements
        )
        return self.bytes_per_element * max(in_block, 3 * whole.root_elements)

    def unsharded_forward_bytes(self, model: ModelConfig) -> int:
        """Return the peak bytes of unsharded weights in a forward pass alone, as in a boundary check."""
        whole, blocks = self.unsharded_sizes(model), min(MAX_UNSHARDED_BLOCKS, model.n_layers)
        return self.bytes_per_element * (whole.root_elements + blocks * whole.block_elements)


@dataclass(frozen=True)
class UnshardedSizes:
    """Numbers of elements of unsharded weights under fsdp, including padding."""

    root_elements: int
    """Elements outside the blocks: embedding, final norm, head."""
    block_elements: int
    """Elements of the largest block."""
    all_block_elements: int
    """Elements of all blocks."""
    largest_tensor_elements: int
    """Elements of the largest tensor."""


def build_sharding_layout(
    settings: TrainerConfig, machine: Machine, strategy: str | None = None
) -> ShardingLayout:
    """Return the sharding layout of a run.

    Args:
        settings: Trainer settings of the run.
        machine: Machine that each device is.
        strategy: Strategy to use instead of the settings' own.
    """
    chosen = strategy or settings.strategy
    width = machine.weight_dtype.itemsize
    return ShardingLayout(
        strategy="ddp" if chosen == "auto" else chosen,
        num_devices=settings.devices or 1,
        bytes_per_element=width,
        bytes_per_compute_element=2 if machine.uses_half_precision else width,
    )
