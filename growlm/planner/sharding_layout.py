"""What one device holds of a phase's model under each strategy.

`ddp`: everything. `fsdp` (FSDP2): its rows of every tensor, and in a pass the whole of the blocks at work.
`expert` (expert parallelism, which nothing runs yet): its experts, and everything of the rest. The formulas are in
docs/planner.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from growlm.config.phase_plan import PlannedPhase
from growlm.config.schema import TrainerConfig
from growlm.growth.growth_map import axes_table_from_config
from growlm.model.axes import split_block_name
from growlm.model.config import ModelConfig
from growlm.model.transformer import TransformerLM
from growlm.runtime.hardware import Machine

STRATEGIES = ("ddp", "fsdp", "expert")
MAX_UNSHARDED_BLOCKS = 2
"""Whole blocks under fsdp: the one at work, and the next one, which is fetched meanwhile."""


@dataclass(frozen=True)
class ShardingLayout:
    """How a model lies on the devices of a run."""

    strategy: str
    """`ddp`, `fsdp` or `expert`; with one device all are the same."""
    num_devices: int
    bytes_per_element: int
    """Bytes of an entry of a weight, a gradient and a moment."""
    bytes_per_compute_element: int
    """Bytes of an entry that goes into a product, as of a token on its way to an expert."""

    @property
    def gathers_weights(self) -> bool:
        """Whether weights are put together for each pass."""
        return self.strategy == "fsdp" and self.num_devices > 1

    def expert_parallel_size(self, model: ModelConfig) -> int:
        """Devices that share the experts of a layer; there are several such groups where this is not all."""
        if self.strategy != "expert" or not model.is_moe:
            return 1
        return math.gcd(self.num_devices, model.num_experts)

    def local_shapes(self, model: ModelConfig) -> dict[str, tuple[int, ...]]:
        """The shapes of what one device holds, by tensor; of the device that holds most."""
        shapes = {}
        experts = self.expert_parallel_size(model)
        for name, row in axes_table_from_config(model, TransformerLM).items():
            parts = self.num_devices if self.gathers_weights else 1
            if row.label.stacked_from is not None:
                parts *= experts
            # FSDP2 divides the first dimension only, and fills up what does not come out even.
            shapes[name] = (-(-row.shape[0] // parts), *row.shape[1:])
        return shapes

    def weight_bytes(self, phase: PlannedPhase) -> int:
        """Of the weights that a device holds; as much are their gradients."""
        if self.num_devices == 1 or self.strategy == "ddp":
            return self.bytes_per_element * phase.parameter_report.total
        return self.bytes_per_element * sum(
            map(math.prod, self.local_shapes(phase.model_config).values())
        )

    def expert_bytes(self, model: ModelConfig) -> int:
        """Of the experts' weights among them."""
        table = axes_table_from_config(model, TransformerLM)
        shapes = self.local_shapes(model)
        stacked = (n for n, row in table.items() if row.label.stacked_from is not None)
        return self.bytes_per_element * sum(math.prod(shapes[name]) for name in stacked)

    def unsharded_sizes(self, model: ModelConfig) -> UnshardedSizes:
        """Entries of the whole weights that one device has in a pass; nothing but under fsdp."""
        if not self.gathers_weights:
            return UnshardedSizes(0, 0, 0)
        root = block = largest = 0
        for name, shape in self.local_shapes(model).items():
            entries = self.num_devices * math.prod(shape)
            index, _ = split_block_name(name)
            if index is None:
                root += entries
            elif index == 0:  # the blocks of a model are alike
                block += entries
            largest = max(largest, entries)
        return UnshardedSizes(root, block, largest)

    def unsharded_pass_bytes(
        self, model: ModelConfig, unsharded_blocks: int = MAX_UNSHARDED_BLOCKS
    ) -> int:
        """The most that whole weights and gradients take in a pass, beside what the device holds.

        Args:
            model: The model.
            blocks: That are whole at once.
        """
        whole = self.unsharded_sizes(model)
        # Backward in a block: its gradients, and a copy of them that is being summed over the devices. The root's
        # weights and gradients stay to the end, when they are summed themselves.
        in_block = (
            2 * whole.root_elements
            + (min(unsharded_blocks, model.n_layers) + 2) * whole.block_elements
        )
        return self.bytes_per_element * max(in_block, 3 * whole.root_elements)

    def unsharded_forward_bytes(self, model: ModelConfig) -> int:
        """Likewise of a forward pass alone: a check's."""
        whole, blocks = self.unsharded_sizes(model), min(MAX_UNSHARDED_BLOCKS, model.n_layers)
        return self.bytes_per_element * (whole.root_elements + blocks * whole.block_elements)


@dataclass(frozen=True)
class UnshardedSizes:
    """Entries of whole weights under fsdp, as they are filled up to be divided evenly."""

    root_elements: int
    """Of what is in no block: embedding, last norm, head."""
    block_elements: int
    """Of one block."""
    largest_tensor_elements: int
    """Of one tensor."""


def build_sharding_layout(
    settings: TrainerConfig, machine: Machine, strategy: str | None = None
) -> ShardingLayout:
    """How the models of a run lie on its devices.

    Args:
        settings: Its `trainer`.
        machine: What each device is.
        strategy: In place of the settings' own.
    """
    chosen = strategy or settings.strategy
    width = machine.weight_dtype.itemsize
    return ShardingLayout(
        strategy="ddp" if chosen == "auto" else chosen,
        num_devices=settings.devices or 1,
        bytes_per_element=width,
        bytes_per_compute_element=2 if machine.uses_half_precision else width,
    )
