"""Scaling of a grown model's optimizer steps, as its `optimizer_state` mode asks for.

`carry` and `reset`: no scaling.

`exact`: where growth multiplied an entry by a and its gradient by b, the entry is stepped with the learning
rate times a and its gradient divided by b, and the gradient norm counts every source once. The grown model
then trains as the old one would have (μP upscaling, 2026, arXiv 2602.10545; Staged Training, Shen et al.
2022, arXiv 2203.06211). Dividing the gradient by b is the same as multiplying Adam's eps by b, and works
entry by entry.

`asymmetric`: the new entries of a tensor begin without moments, and their learning rate is warmed up again
(SPARKLING, Yu et al. 2026, arXiv 2602.02472). PyTorch keeps one step count per tensor, so the bias correction
that the new entries miss is applied here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from growlm.distributed.dtensors import all_reduce_sum, get_local_tensor, is_sharded
from growlm.growth.optimizer_state import ParameterState, bias_correction, update_moments
from growlm.growth.transforms.scale_factors import (
    ScaleFactors,
    common_value,
    original_mask,
    outer_product,
)

if TYPE_CHECKING:
    from growlm.growth.growth_map import GrowthMap

CLIP_EPS = 1e-6
"""Number added to a norm before dividing by it, as `torch.nn.utils.clip_grad_norm_` does."""


class StepScaling:
    """No scaling at all: the modes `carry` and `reset`, and the base class of the other modes."""

    carried_factors: Mapping[str, ScaleFactors] = {}
    """The factors that the next phase of the same mode starts from."""

    def lr_factor(self, name: str) -> float:
        """Return the factor that multiplies the parameter's learning rate."""
        return 1.0

    def scale_state(self, states: Mapping[str, ParameterState]) -> None:
        """Turn plain states, in place, into those the optimizer should begin with."""

    def unscale_state(self, states: Mapping[str, ParameterState]) -> None:
        """Turn the optimizer's states, in place, back into plain ones."""

    def state_dict(self) -> dict[str, Any]:
        """Return what has changed since the phase began, as JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, instead of calling `scale_state`."""

    def before_step(self, model: nn.Module, optimizer: Optimizer, max_norm: float) -> Tensor:
        """Clip the gradients, after the backward pass.

        Args:
            model: Model with gradients.
            optimizer: Optimizer that is about to step.
            max_norm: Largest norm; infinite for no clipping.

        Returns:
            The norm before clipping. If it is not finite, gradients are left as they are: clipping would
            spread NaN from one to all.
        """
        trained = [p for p in model.parameters() if p.grad is not None]
        norm = compute_gradient_norm([p.grad for p in trained if p.grad is not None])
        # Torch would multiply all gradients even by 1. Only on a CPU can the norm be read without waiting for it.
        within = norm.device.type == "cpu" and bool(max_norm / (norm + CLIP_EPS) >= 1.0)
        if not within:
            torch.nn.utils.clip_grads_with_norm_(trained, max_norm, _zero_if_nonfinite(norm))
        return norm

    def after_step(self) -> None:
        """Finish the scaling after the optimizer's step."""

    def skip_step(self) -> None:
        """Undo `before_step`, because the optimizer will not step."""


@torch.no_grad()
def compute_gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of gradients that are all sharded or all not."""
    norm = torch.nn.utils.get_total_norm([get_local_tensor(gradient) for gradient in gradients])
    if not gradients or not is_sharded(gradients[0]):
        return norm
    return all_reduce_sum(norm.square(), gradients[0]).sqrt()


def _zero_if_nonfinite(norm: Tensor) -> Tensor:
    """Return the norm, or 0 (which clips nothing) if it is not finite, without waiting for the device."""
    return torch.where(torch.isfinite(norm), norm, 0.0)


class _EntrywiseUpdateScaling:
    """Scaling of an optimizer's update entry by entry, which leaves weight decay alone.

    Holds one more copy of the parameters it scales, between the backward pass and the end of the step.
    """

    def __init__(self) -> None:
        self._old_values: list[tuple[nn.Parameter, Tensor, Callable[[Tensor], Tensor]]] = []

    def record(
        self, optimizer: Optimizer, scales: Mapping[nn.Parameter, Callable[[Tensor], Tensor]]
    ) -> None:
        """Remember the values before the update.

        Args:
            optimizer: Optimizer that is about to step.
            scales: For each parameter, a function that returns the factors of its update, shaped like its
                argument.
        """
        decoupled = not isinstance(optimizer, SGD)
        for group in optimizer.param_groups:
            kept = 1.0 - group["lr"] * group["weight_decay"] if decoupled else 1.0
            for parameter in group["params"]:
                if parameter in scales:
                    old = get_local_tensor(parameter.detach()) * kept
                    self._old_values.append((parameter, old, scales[parameter]))

    @torch.no_grad()
    def apply(self) -> None:
        """Scale the update after the optimizer's step."""
        for parameter, old, scale in self._old_values:
            new = get_local_tensor(parameter)
            new.copy_(torch.lerp(old, new, scale(parameter)))
        self.clear()

    def clear(self) -> None:
        """Drop the remembered values."""
        self._old_values.clear()


def _scale_new_entries(factors: ScaleFactors, scale: float, like: Tensor) -> Tensor:
    """Return factors: `scale` for entries outside the original block, 1 inside it."""
    original = original_mask(factors, like)
    return original + scale * (1.0 - original)


class ExactScaling(StepScaling):
    """Scaling with which the grown model trains as the old one would have.

    Args:
        factors: Scale factors of the parameters that the optimizer steps, by name, accumulated since the first of
            the consecutive boundaries with this mode.
        scales_rates: Whether the optimizer's groups multiply their learning rates by `lr_factor`. If not, all
            updates are scaled one by one, which takes one more copy of what they change.
    """

    def __init__(self, factors: Mapping[str, ScaleFactors], scales_rates: bool = True) -> None:
        self.factors = self.carried_factors = factors
        self._scales_rates = scales_rates
        self._updates = _EntrywiseUpdateScaling()

    def lr_factor(self, name: str) -> float:
        """Return a if all entries of the parameter share it, else 1: their updates are scaled one by one."""
        return (self._weight_factor(name) or 1.0) if self._scales_rates else 1.0

    def scale_state(self, states: Mapping[str, ParameterState]) -> None:
        """Turn moments of the gradient into those that the old model would have."""
        self._scale_moments(states, -1)

    def unscale_state(self, states: Mapping[str, ParameterState]) -> None:
        """Turn the moments back into those of the actual gradient."""
        self._scale_moments(states, 1)

    @torch.no_grad()
    def before_step(self, model: nn.Module, optimizer: Optimizer, max_norm: float) -> Tensor:
        """Turn gradients into those of the old model, and clip them by the norm that the old model would have."""
        trained = [
            (name, p)
            for name, p in model.named_parameters()
            if p.grad is not None and name in self.factors
        ]
        if not trained:
            return torch.tensor(0.0)
        squares = []
        for name, parameter in trained:
            factors, gradient = self.factors[name], parameter.grad
            assert gradient is not None
            if common_value([f.gradient for f in factors]) != 1.0:
                get_local_tensor(gradient).div_(
                    outer_product([f.gradient for f in factors], gradient)
                )
            share = outer_product([f.norm_share for f in factors], gradient)
            squares.append((get_local_tensor(gradient).square() * share).sum())
        norm = all_reduce_sum(torch.stack(squares).sum(), trained[0][1]).sqrt()
        shrink = (max_norm / (_zero_if_nonfinite(norm) + CLIP_EPS)).clamp(max=1.0)
        for _, parameter in trained:
            assert parameter.grad is not None
            get_local_tensor(parameter.grad).mul_(shrink)
        self._record_nonuniform(dict(trained), optimizer)
        return norm

    def after_step(self) -> None:
        """Scale the updates that a group's learning rate could not scale."""
        self._updates.apply()

    def skip_step(self) -> None:
        """Drop the remembered weights."""
        self._updates.clear()

    def _weight_factor(self, name: str) -> float | None:
        return common_value([f.weight for f in self.factors[name]])

    def _is_scaled_singly(self, weight_factor: float | None) -> bool:
        return weight_factor is None or (not self._scales_rates and weight_factor != 1.0)

    def _record_nonuniform(self, trained: dict[str, nn.Parameter], optimizer: Optimizer) -> None:
        scales = {
            parameter: partial(outer_product, [f.weight for f in self.factors[name]])
            for name, parameter in trained.items()
            if self._is_scaled_singly(self._weight_factor(name))
        }
        # SGD adds weight decay to the gradient, so the decay would be scaled with the update.
        if isinstance(optimizer, SGD):
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p in scales and group["weight_decay"]:
                        own = get_local_tensor(p)
                        decayed = own / scales[p](p) - own
                        get_local_tensor(p.grad).add_(decayed, alpha=group["weight_decay"])
        self._updates.record(optimizer, scales)

    def _scale_moments(self, states: Mapping[str, ParameterState], direction: int) -> None:
        for name, state in states.items():
            vectors = [f.gradient for f in self.factors[name]]
            if common_value(vectors) == 1.0:
                continue

            def scale(moment: Tensor, power: int, vectors: list[Tensor] = vectors) -> None:
                get_local_tensor(moment).mul_(
                    outer_product([v ** (direction * power) for v in vectors], moment)
                )

            update_moments(state, scale)


class AsymmetricScaling(StepScaling):
    """Scaling with a separate learning rate and bias correction for the new entries of a tensor.

    Args:
        factors: Scale factors by parameter name, of the last boundary.
        peak_lr_factor: Largest learning rate of the new entries, relative to that of the old ones.
        warmup_steps: Number of steps to the peak; the rate falls back in as many.
        betas: Adam's betas; None for an optimizer without bias correction.
    """

    def __init__(
        self,
        factors: Mapping[str, ScaleFactors],
        peak_lr_factor: float,
        warmup_steps: int,
        betas: tuple[float, float] | None,
    ) -> None:
        self._widened = {
            name: f for name, f in factors.items() if not all(bool(d.original.all()) for d in f)
        }
        self.factors = self._widened
        self.peak_lr_factor, self.warmup_steps, self.betas = peak_lr_factor, warmup_steps, betas
        self.steps_since_growth = 0
        self._old_steps: dict[str, float] = {}
        self._updates = _EntrywiseUpdateScaling()

    def scale_state(self, states: Mapping[str, ParameterState]) -> None:
        """Record how many steps the old entries have done; tensors without state need no scaling."""
        if self.betas is None:
            return
        self.factors = {name: f for name, f in self.factors.items() if name in states}
        steps = {name: states[name].get("step") for name in self.factors}
        self._old_steps = {name: float(step) for name, step in steps.items() if step is not None}

    def unscale_state(self, states: Mapping[str, ParameterState]) -> None:
        """Turn the moments of new entries into those they would have if they were as old as the others."""
        if self.betas is None or not self.steps_since_growth:
            return
        for name, old_steps in self._old_steps.items():
            update_moments(
                states[name], partial(self._adjust_bias_correction, self.factors[name], old_steps)
            )

    def _adjust_bias_correction(
        self, factors: ScaleFactors, old_steps: float, moment: Tensor, power: int
    ) -> None:
        assert self.betas is not None
        beta = self.betas[power - 1]
        ratio = bias_correction(beta, old_steps + self.steps_since_growth) / bias_correction(
            beta, self.steps_since_growth
        )
        get_local_tensor(moment).mul_(_scale_new_entries(factors, ratio, moment))

    def before_step(self, model: nn.Module, optimizer: Optimizer, max_norm: float) -> Tensor:
        """Clip the gradients, and remember the values of the new entries."""
        norm = super().before_step(model, optimizer, max_norm)
        self.steps_since_growth += 1
        scales = {}
        for name, parameter in model.named_parameters():
            if name not in self.factors or parameter.grad is None:
                continue
            scale = self.new_entry_factor(name)
            if abs(scale - 1.0) > 1e-6:
                scales[parameter] = partial(_scale_new_entries, self.factors[name], scale)
        self._updates.record(optimizer, scales)
        return norm

    def after_step(self) -> None:
        """Scale the updates of the new entries."""
        self._updates.apply()

    def skip_step(self) -> None:
        """Drop the remembered weights, and do not count the step."""
        self._updates.clear()
        self.steps_since_growth -= 1

    def state_dict(self) -> dict[str, Any]:
        """Return the age of the new entries, the tensors that have some, and the age of their old entries."""
        return {
            "age": self.steps_since_growth,
            "scaled": list(self.factors),
            "old_steps": self._old_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.steps_since_growth, self._old_steps = state["age"], state["old_steps"]
        self.factors = {name: self._widened[name] for name in state["scaled"]}

    def new_entry_factor(self, name: str) -> float:
        """Return the factor that multiplies the update of the parameter's new entries at the present step."""
        ramp = min(self.steps_since_growth, 2 * self.warmup_steps - self.steps_since_growth) / max(
            1, self.warmup_steps
        )
        warmed = 1.0 + (self.peak_lr_factor - 1.0) * max(0.0, ramp)
        if self.betas is None or name not in self._old_steps:  # SGD and Muon: no bias correction
            return warmed
        total = self._old_steps[name] + self.steps_since_growth
        first, second = (
            bias_correction(beta, total) / bias_correction(beta, self.steps_since_growth)
            for beta in self.betas
        )
        return warmed * first / second**0.5


def make_step_scaling(
    mode: str,
    growth_map: GrowthMap,
    earlier_factors: Mapping[str, ScaleFactors],
    rewarm_peak: float,
    rewarm_steps: int,
    betas: tuple[float, float] | None,
) -> StepScaling:
    """Make the step scaling of a mode of `growlm/growth/optimizer_state.py`.

    Args:
        mode: Mode of the optimizer's state.
        growth_map: Map of the growth before the steps.
        earlier_factors: For `exact`, the carried factors of the scaling before the growth, if there was one.
        rewarm_peak: For `asymmetric`, largest learning rate of the new entries, relative to that of the old ones.
        rewarm_steps: For `asymmetric`, number of steps to that peak.
        betas: For `asymmetric`, Adam's betas; None for an optimizer without bias correction.
    """
    if mode == "exact":
        return ExactScaling(growth_map.scale_factors(earlier_factors))
    if mode == "asymmetric":
        return AsymmetricScaling(growth_map.scale_factors(), rewarm_peak, rewarm_steps, betas)
    return StepScaling()
