"""Train and grow with an optimizer of one's own, named with `_target_`.

    python examples/own_optimizer.py

On the command line: python -m growlm.train optimizer._target_=my_package.Lion optimizer.beta2=0.99
"""

import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import torch

from growlm.config import load_config
from growlm.growth import register_moment
from growlm.training import run_plan

SMALL_RUN = [
    *("model.d_model=32", "model.head_dim=8", "model.d_ff=64", "model.n_layers=2"),
    *(f"phases.{name}.steps=4" for name in ("dense", "moe", "wide", "deep")),
    *("sequence_length=32", "data.documents=200", "callbacks.sample_tokens=0", "logger=none"),
]

# `average` is a running mean of the gradient, and grows as one. Without this line it would begin anew in each
# phase that grows, and the run would say so.
register_moment("average", power=1)


class Lion(torch.optim.Optimizer):
    """Lion (Chen et al. 2023, arXiv 2302.06675)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.99,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": (beta1, beta2), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:
        """Step every parameter by the sign of an average of its gradients."""
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(average.lerp(p.grad, 1 - beta1).sign(), alpha=group["lr"])
                average.lerp_(p.grad, 1 - beta2)
        return loss


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        named = [f"optimizer._target_={__name__}.Lion", "optimizer.beta2=0.95"]
        run_plan(load_config(*SMALL_RUN, *named, f"run_dir={folder}/run"))
