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
from growlm.growth.growth_map import table_of
from growlm.model.axes import split_block_name
from growlm.model.config import ModelConfig
from growlm.model.transformer import TransformerLM
from growlm.runtime.hardware import Machine

STRATEGIES = ("ddp", "fsdp", "expert")
BLOCKS_AT_ONCE = 2
"""Whole blocks under fsdp: the one at work, and the next one, which is fetched meanwhile."""


@dataclass(frozen=True)
class Layout:
    """How a model lies on the devices of a run."""

    strategy: str
    """`ddp`, `fsdp` or `expert`; with one device all are the same."""
    devices: int
    width: int
    """Bytes of an entry of a weight, a gradient and a moment."""
    product_width: int
    """Bytes of an entry that goes into a product, as of a token on its way to an expert."""

    @property
    def gathers(self) -> bool:
        """Whether weights are put together for each pass."""
        return self.strategy == "fsdp" and self.devices > 1

    def expert_devices(self, model: ModelConfig) -> int:
        """Devices that share the experts of a layer; there are several such groups where this is not all."""
        if self.strategy != "expert" or not model.is_moe:
            return 1
        return math.gcd(self.devices, model.num_experts)

    def held(self, model: ModelConfig) -> dict[str, tuple[int, ...]]:
        """The shapes of what one device holds, by tensor; of the device that holds most."""
        shapes = {}
        experts = self.expert_devices(model)
        for name, row in table_of(model, TransformerLM).items():
            parts = self.devices if self.gathers else 1
            if row.label.stacked_from is not None:
                parts *= experts
            # FSDP2 divides the first dimension only, and fills up what does not come out even.
            shapes[name] = (-(-row.shape[0] // parts), *row.shape[1:])
        return shapes

    def weight_bytes(self, phase: PlannedPhase) -> int:
        """Of the weights that a device holds; as much are their gradients."""
        if self.devices == 1 or self.strategy == "ddp":
            return self.width * phase.parameters.total
        return self.width * sum(map(math.prod, self.held(phase.model).values()))

    def expert_bytes(self, model: ModelConfig) -> int:
        """Of the experts' weights among them."""
        table = table_of(model, TransformerLM)
        shapes = self.held(model)
        stacked = (n for n, row in table.items() if row.label.stacked_from is not None)
        return self.width * sum(math.prod(shapes[name]) for name in stacked)

    def whole(self, model: ModelConfig) -> Whole:
        """Entries of the whole weights that one device has in a pass; nothing but under fsdp."""
        if not self.gathers:
            return Whole(0, 0, 0)
        root = block = largest = 0
        for name, shape in self.held(model).items():
            entries = self.devices * math.prod(shape)
            index, _ = split_block_name(name)
            if index is None:
                root += entries
            elif index == 0:  # the blocks of a model are alike
                block += entries
            largest = max(largest, entries)
        return Whole(root, block, largest)

    def pass_bytes(self, model: ModelConfig, blocks: int = BLOCKS_AT_ONCE) -> int:
        """The most that whole weights and gradients take in a pass, beside what the device holds.

        Args:
            model: The model.
            blocks: That are whole at once.
        """
        whole = self.whole(model)
        # Backward in a block: its gradients, and a copy of them that is being summed over the devices. The root's
        # weights and gradients stay to the end, when they are summed themselves.
        in_block = 2 * whole.root + (min(blocks, model.n_layers) + 2) * whole.block
        return self.width * max(in_block, 3 * whole.root)

    def forward_bytes(self, model: ModelConfig) -> int:
        """Likewise of a forward pass alone: a check's."""
        whole, blocks = self.whole(model), min(BLOCKS_AT_ONCE, model.n_layers)
        return self.width * (whole.root + blocks * whole.block)


@dataclass(frozen=True)
class Whole:
    """Entries of whole weights under fsdp, as they are filled up to be divided evenly."""

    root: int
    """Of what is in no block: embedding, last norm, head."""
    block: int
    """Of one block."""
    largest: int
    """Of one tensor."""


def layout_of(settings: TrainerConfig, machine: Machine, strategy: str | None = None) -> Layout:
    """How the models of a run lie on its devices.

    Args:
        settings: Its `trainer`.
        machine: What each device is.
        strategy: In place of the settings' own.
    """
    chosen = strategy or settings.strategy
    width = machine.weight_dtype.itemsize
    return Layout(
        strategy="ddp" if chosen == "auto" else chosen,
        devices=settings.devices or 1,
        width=width,
        product_width=2 if machine.half_precision else width,
    )
