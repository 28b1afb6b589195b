"""Train a plan with an operator that is wrong on purpose, to see what the checks say.

    python docs/gallery/wrong_operator.py [overrides of growlm.train]

`stack_blocks` copies every block, which changes what the model computes, and forgets to say so: it leaves
`lossless` at true. The functional check finds it, and the run stops before it trains the grown model.
"""

from __future__ import annotations

from dataclasses import dataclass

import growlm.train
from growlm.growth import BlockOrigin, GrowthSpec, register_operator
from growlm.model import ModelConfig


@register_operator("stack_blocks")
@dataclass
class StackBlocks:
    """Put a plain copy of all blocks behind them."""

    def change(self, config: ModelConfig) -> GrowthSpec:
        """Return what happens to a model of this config."""
        kept = [BlockOrigin(block) for block in range(config.n_layers)]
        copies = [BlockOrigin(block, "copy") for block in range(config.n_layers)]
        return GrowthSpec(
            config=config.with_blocks([origin.source for origin in kept + copies]),
            description=[f"{config.n_layers} blocks stacked behind the {config.n_layers}"],
            blocks=(*kept, *copies),
        )

    def summarize(self) -> str:
        """Return a few words for tables."""
        return "blocks stacked"


if __name__ == "__main__":
    growlm.train.main()
