"""Grow a model with an operator of one's own: repeat some of its blocks, as depth up-scaling does.

    python examples/own_operator.py

Depth up-scaling (Kim et al. 2023, arXiv 2312.15166) puts a second copy of a run of blocks behind the first. Here
the copies start with output projections of zero, so the model computes what it did before. An entry point makes
an operator known to `growlm train` and the other commands (docs/own_operators.md).
"""

from dataclasses import dataclass, field

import torch

from growlm.growth import BlockOrigin, GrowthSpec, UserError, grow, limits, register_operator
from growlm.model import ModelConfig, TransformerLM
from growlm.verification import verify_functional_equivalence


@register_operator("repeat_blocks")
@dataclass
class RepeatBlocks:
    """Repeat some blocks, in order, behind the last of them; lossless."""

    blocks: list[int] = field(default_factory=lambda: [0], metadata=limits(minimum=0))

    def change(self, config: ModelConfig) -> GrowthSpec:
        """Return what happens to a model of this config."""
        if not self.blocks or not all(0 <= i < config.n_layers for i in self.blocks):
            reason = f"must be some of the blocks 0 to {config.n_layers - 1}"
            raise UserError("blocks", self.blocks, reason)
        origins = [BlockOrigin(i) for i in range(config.n_layers)]
        place = max(self.blocks) + 1
        origins[place:place] = [BlockOrigin(i, "identity") for i in self.blocks]
        return GrowthSpec(
            config=config.with_blocks([origin.source for origin in origins]),
            description=[f"Blocks {self.blocks} repeated behind block {place - 1}"],
            blocks=tuple(origins),
        )

    def summarize(self) -> str:
        """Return a few words for tables."""
        return f"+{len(self.blocks)} repeated"


def main() -> None:
    """Grow a model from 4 to 6 blocks, and check that its outputs are the same."""
    model = TransformerLM(ModelConfig(vocab_size=256, d_model=64, n_layers=4, n_heads=4, d_ff=128))
    grown = grow(model, [RepeatBlocks(blocks=[1, 2])])
    report = verify_functional_equivalence(model, grown, torch.arange(32).unsqueeze(0), "cpu")
    print(f"grown from {len(model.blocks)} to {len(grown.blocks)} blocks")
    print(f"logits differ by {report.max_difference:.1e}")


if __name__ == "__main__":
    main()
