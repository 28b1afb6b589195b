"""Scale the steps of any optimizers after a growth, for modules that do not do it themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from growlm.growth.optimizer_growth import check_scalable
from growlm.growth.optimizer_state import ParameterState
from growlm.growth.step_scaling import AsymmetricScaling, ExactScaling, StepScaling
from growlm.optim.optimizer_states import find_optimizer_names


class ScaledSteps:
    """The step scaling of each of a trainer's optimizers; each scales its own parameters.

    Args:
        scalings: Scalings by optimizer.
    """

    def __init__(self, scalings: Mapping[Optimizer, StepScaling]) -> None:
        self.scalings = dict(scalings)
        self._pending: set[Optimizer] = set()
        for optimizer, scaling in self.scalings.items():
            optimizer.register_step_post_hook(self._make_hook(optimizer, scaling))

    @staticmethod
    def build(
        scaling: StepScaling,
        mode: str,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        betas: tuple[float, float] | None,
    ) -> ScaledSteps | None:
        """Split a scaling among optimizers; None if the mode scales no steps.

        Raises:
            UserError: If the mode cannot scale the steps of an optimizer.
        """
        parts: dict[Optimizer, StepScaling] = {}
        for optimizer in optimizers:
            names = find_optimizer_names(model, [optimizer])
            if isinstance(scaling, ExactScaling | AsymmetricScaling):
                check_scalable(optimizer, mode)
            if isinstance(scaling, ExactScaling):
                factors = {name: scaling.factors[name] for name in names}
                parts[optimizer] = ExactScaling(factors, scales_rates=False)
            elif isinstance(scaling, AsymmetricScaling):
                factors = {n: f for n, f in scaling.factors.items() if n in names}
                parts[optimizer] = AsymmetricScaling(
                    factors,
                    scaling.peak_lr_factor,
                    scaling.warmup_steps,
                    betas or optimizer.param_groups[0].get("betas"),
                )
        return ScaledSteps(parts) if parts else None

    def before_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Scale the optimizer's gradients, after the backward pass."""
        scaling = self.scalings[optimizer]
        if optimizer in self._pending:  # a gradient scaler has skipped the step
            scaling.skip_step()
        self._pending.add(optimizer)
        scaling.before_step(model, optimizer, float("inf"))

    def scale_state(self, states: Mapping[str, ParameterState]) -> None:
        """Turn plain states, in place, into those the optimizers should begin with."""
        for optimizer, scaling in self.scalings.items():
            scaling.scale_state(self._own(states, optimizer))

    def unscale_state(self, states: Mapping[str, ParameterState]) -> None:
        """Turn the optimizers' states, in place, back into plain ones."""
        for optimizer, scaling in self.scalings.items():
            scaling.unscale_state(self._own(states, optimizer))

    def state_dict(self) -> dict[str, Any]:
        """Return what has changed since the phase began, by number of the optimizer."""
        scalings = self.scalings.values()
        return {str(number): each.state_dict() for number, each in enumerate(scalings)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for number, scaling in enumerate(self.scalings.values()):
            scaling.load_state_dict(state[str(number)])

    def _make_hook(self, optimizer: Optimizer, scaling: StepScaling) -> Any:
        def after_step(*_: object) -> None:
            scaling.after_step()
            self._pending.discard(optimizer)

        return after_step

    def _own(
        self, states: Mapping[str, ParameterState], optimizer: Optimizer
    ) -> dict[str, ParameterState]:
        scaling = self.scalings[optimizer]
        assert isinstance(scaling, ExactScaling | AsymmetricScaling)
        return {name: state for name, state in states.items() if name in scaling.factors}
