"""Use a Lightning callback of one's own in a plan, named with `_target_`.

    python examples/own_callback.py

On the command line: python -m growlm.train callbacks.extra.norms._target_=my_package.WeightNorms
"""

import tempfile
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from growlm.config import load_config
from growlm.training import run_plan

SMALL_RUN = [
    *("model.d_model=32", "model.head_dim=8", "model.d_ff=64", "model.n_layers=2"),
    *(f"phases.{name}.steps=4" for name in ("dense", "moe", "wide", "deep")),
    *("sequence_length=32", "data.documents=200", "callbacks.sample_tokens=0", "logger=none"),
]


class WeightNorms(Callback):
    """Print the norm of all weights every few steps; Lightning's hooks are called as in any other training."""

    def __init__(self, every: int = 2) -> None:
        self.every, self.steps = every, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the size of the model that this phase trains."""
        print(f"norms: {sum(p.numel() for p in pl_module.parameters()):,} parameters")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the steps, and print the norm."""
        self.steps += 1
        if self.steps % self.every == 0:
            norm = sum(p.detach().square().sum() for p in pl_module.parameters()) ** 0.5
            print(f"norms: step {self.steps} of this phase, {float(norm):.3f}")

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.steps = state_dict["steps"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        named = [f"callbacks.extra.norms._target_={__name__}.WeightNorms"]
        run_plan(load_config(*SMALL_RUN, *named, f"run_dir={folder}/run"))
