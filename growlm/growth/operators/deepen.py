"""Insert blocks derived from existing ones.

`identity` (LLaMA-Pro, Wu et al. 2024, arXiv 2401.02415): a copy whose output projections (or, where a norm
follows them, that norm's gains) are zero adds nothing to the residual stream, so the function is kept, and it
trains through them from the first step. `copy` (Gstack, Du et al. 2024, arXiv 2405.15319): a plain copy, which
changes the function.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from growlm.growth.growth_map import BlockOrigin, GrowthSpec
from growlm.growth.operators.registry import register_operator
from growlm.model.config import ModelConfig
from growlm.runtime.field_limits import check_limits, limits

BLOCK_INITS = ("identity", "fresh", "copy")
PLACEMENTS = ("append", "stack", "interleave")


@register_operator("deepen", order=40)
@dataclass
class Deepen:
    """Add blocks derived from existing ones; lossless unless `init="copy"`."""

    extra_layers: int = field(default=1, metadata=limits(minimum=1, maximum=4096))
    """Number of new blocks."""
    placement: str = field(default="append", metadata=limits(choices=PLACEMENTS))
    """Where new blocks go and what they copy: `append` puts copies of the last block at the end; `stack` puts
    copies of all blocks, in order, at the end; `interleave` puts copies of evenly spread blocks right behind
    each of them."""
    init: str = field(default="identity", metadata=limits(choices=BLOCK_INITS))
    """How new blocks start: `identity` as copies whose output projections are zero, which keeps the function;
    `fresh` likewise, with all other matrices reinitialized; `copy` as plain copies, which are reported as not
    lossless."""

    def change(self, config: ModelConfig) -> GrowthSpec:
        """Return the growth of a model of this config: its new config, and the source of each new block.

        Raises:
            UserError: If a setting is out of bounds.
        """
        check_limits(self)
        blocks = self._block_origins(config.n_layers)
        how = {
            "identity": "output projections set to zero",
            "fresh": "output projections set to zero, other matrices reinitialized",
            "copy": "plain copy (not lossless)",
        }[self.init]
        return GrowthSpec(
            config=config.with_blocks([origin.source for origin in blocks]),
            description=[
                f"Layer {i} from layer {origin.source}, {how}"
                for i, origin in enumerate(blocks)
                if origin.kind != "kept"
            ],
            lossless=self.init != "copy",
            blocks=blocks,
        )

    def summarize(self) -> str:
        """Return a few words for tables."""
        copies = ", copied" if self.init == "copy" else ""
        return f"+{self.extra_layers} {'layer' if self.extra_layers == 1 else 'layers'}{copies}"

    def smaller(self) -> Iterator[Deepen]:
        """Yield the same growth with fewer layers, the most first."""
        for layers in range(self.extra_layers - 1, 0, -1):
            yield replace(self, extra_layers=layers)

    @classmethod
    def infer(cls, old: ModelConfig, new: ModelConfig) -> list[Deepen]:
        """Return the ways in which blocks may have been added."""
        if new.n_layers <= old.n_layers:
            return []
        sizes: dict[str, Any] = {"extra_layers": new.n_layers - old.n_layers}
        return [
            cls(**sizes, placement=placement, init=init)
            for init in ("identity", "fresh", "copy")
            for placement in PLACEMENTS
        ]

    def _block_origins(self, n_layers: int) -> tuple[BlockOrigin, ...]:
        kept = [BlockOrigin(i) for i in range(n_layers)]
        if self.placement == "append":
            return (*kept, *[BlockOrigin(n_layers - 1, self.init)] * self.extra_layers)
        if self.placement == "stack":
            copies = [BlockOrigin(j % n_layers, self.init) for j in range(self.extra_layers)]
            return (*kept, *copies)
        # floor((j + 1/2) · layers / extra), in integers
        sources = [
            (2 * j + 1) * n_layers // (2 * self.extra_layers) for j in range(self.extra_layers)
        ]
        return tuple(
            origin
            for block in kept
            for origin in (
                block,
                *[BlockOrigin(block.source, self.init)] * sources.count(block.source),
            )
        )
