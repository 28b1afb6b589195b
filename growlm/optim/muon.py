"""Muon for the matrices inside the model and AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class MuonAdamW(Optimizer):
    """An optimizer that runs torch's Muon and torch's AdamW behind one list of parameter groups.

    Muon (Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982) orthogonalizes the update of one matrix. A
    stack of experts is many matrices: each expert's update is orthogonalized by itself. The step is scaled as
    in section 2.2 of the second paper, so that AdamW's learning rates and weight decays can be used.

    Args:
        groups: Parameter groups, each with `params`, `weight_decay` and `orthogonal` (whether Muon steps
            them).
        lr: Learning rate.
        momentum: Momentum of Muon.
        betas: Decay rates of AdamW's moments.
        eps: AdamW's eps.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__(list(groups), {"lr": lr, "weight_decay": 0.0, "orthogonal": False})
        self._settings = (lr, momentum, betas, eps)
        # Each group has its own inner optimizer, which gets the group's learning rate at every step.
        self._muon = [
            (group, torch.optim.Muon(_views(group["params"]), lr=lr, momentum=momentum,
                                     adjust_lr_fn="match_rms_adamw"))
            for group in self.param_groups
            if group["orthogonal"]
        ]  # fmt: skip
        self._adamw = [
            (group, torch.optim.AdamW(group["params"], lr=lr, betas=betas, eps=eps, fused=True))
            for group in self.param_groups
            if not group["orthogonal"]
        ]
        for _, adamw in self._adamw:
            adamw.state = self.state

    def with_groups(self, groups: Iterable[dict[str, Any]]) -> MuonAdamW:
        """Return an optimizer with the same settings and other groups, and no state."""
        return MuonAdamW(groups, *self._settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all parameters, with Muon or with AdamW."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, inner in (*self._muon, *self._adamw):
            for key in ("lr", "weight_decay"):
                inner.param_groups[0][key] = group[key]
        for group, muon in self._muon:
            self._attach_gradients_and_state(group["params"], muon)
            muon.step()
            muon.zero_grad()
        for _, adamw in self._adamw:
            adamw.step()
        return loss

    def _attach_gradients_and_state(
        self, parameters: list[nn.Parameter], muon: torch.optim.Muon
    ) -> None:
        views = iter(muon.param_groups[0]["params"])
        for parameter in parameters:
            state = self.state[parameter]
            if parameter.grad is not None and "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            for index, _ in enumerate(_matrices(parameter)):
                view = next(views)
                if parameter.grad is None:
                    continue
                view.grad = _matrices(parameter.grad)[index]
                momentum = _matrices(state["momentum_buffer"])[index]
                muon.state[view] = {"momentum_buffer": momentum}


def _matrices(tensor: Tensor) -> list[Tensor]:
    return [tensor] if tensor.ndim == 2 else list(tensor.unbind(0))


def _views(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(matrix) for p in parameters for matrix in _matrices(p.data)]
