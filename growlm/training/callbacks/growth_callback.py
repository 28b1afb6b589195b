"""Grow a LightningModule's model when a phase begins, check the growth, and grow its optimizers' state.

The model grows in `setup`, which Lightning calls before it configures or wraps anything: every strategy then
wraps the grown model, and no private Lightning API is needed. The optimizers get their state in `on_fit_start`,
when the module's own `configure_optimizers` has returned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    SingleDeviceXLAStrategy,
    XLAStrategy,
)
from torch import Tensor, nn
from torch.optim import Optimizer

from growlm.distributed.dtensors import get_device_mesh
from growlm.distributed.process_group import DistributedContext
from growlm.growth.grow_model import Operator, apply_growth, build_growth_map, check_operators
from growlm.growth.growth_rng import GrowthRng
from growlm.growth.model_protocol import growth_config_of
from growlm.growth.operators.registry import operators_to_dicts
from growlm.growth.optimizer_growth import check_growable_states, check_scalable_names
from growlm.growth.optimizer_state import (
    OPTIMIZER_STATE_MODES,
    ParameterState,
    explain_inexactness,
    grow_optimizer_state,
)
from growlm.growth.step_scaling import StepScaling, make_step_scaling
from growlm.optim.optimizer_states import (
    find_optimizer_names,
    get_optimizer_states,
    restore_optimizer_states,
)
from growlm.reporting.records import BoundaryRecord
from growlm.runtime.errors import UserError
from growlm.runtime.memory import release_memory
from growlm.training.callbacks.replica_check import GrowthError, check_replicas_match
from growlm.training.callbacks.scaled_steps import ScaledSteps
from growlm.training.phase_state import EMPTY_REASON, PhaseState
from growlm.verification.check_report import GrowthReport
from growlm.verification.growth_check import detailed_growth_check

STRATEGIES = (SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy)
OTHER_STRATEGIES = (DeepSpeedStrategy, SingleDeviceXLAStrategy, XLAStrategy)
"""Strategies that derive from those, and keep weights and optimizers otherwise."""
CHECKS_PAGE = "docs/troubleshooting.md#a-check-failed"
"""Page that describes each check and the usual causes of its failure."""
PROBE_SIZE = (4, 64)
"""Sequences and tokens of the probe that is drawn if none is given."""


class GrowthCallback(Callback):
    """Callback that grows a LightningModule's model, checks the growth, and grows its optimizers' state.

    Give one to the Trainer of every phase, before callbacks that copy the model (weight averaging):

        state = None
        for steps, operators in [(1000, []), (500, [Upcycle(8)]), (500, [Widen(1.5), Deepen(2)])]:
            growth = GrowthCallback(operators, previous=state)
            trainer = Trainer(max_steps=steps, callbacks=[growth])
            trainer.fit(module, datamodule)
            state = PhaseState.from_trainer(trainer)

    The module's `configure_optimizers` may return any optimizers, of torch or its own. Under FSDP2
    (`ModelParallelStrategy`), the grown model is sharded as the previous one was, so `configure_model` must leave
    a sharded model as it is, as Lightning asks of that hook. `trainer.fit(ckpt_path=...)` resumes within a phase:
    give the callback the same operators and the same `previous` as before.

    A module with an attribute `step_scaling` gets the `StepScaling` of `exact` and `asymmetric` there and uses it
    itself: `lr_factor` where it builds the optimizer, `before_step` in `configure_gradient_clipping`, `after_step`
    or `skip_step` behind the step. For other modules, the callback scales the steps.

    The order keeps peak memory low: grow the weights; run the checks; free the old weights; grow the moments,
    freeing each old one after its last use.

    Args:
        operators: Growth operators, applied in order; empty for a phase that does not grow.
        previous: State of the previous phase, which is empty afterwards. None to grow the model that the module
            has, without optimizer state.
        optimizer_state: Mode of the optimizer state's growth: `carry`, `reset`, `exact` or `asymmetric`
            (`growlm/growth/optimizer_state.py`).
        probe: Fixed tokens for the checks, (sequences, time). None draws random ones, which needs a
            `vocab_size` in the model's config.
        attribute: Attribute of the LightningModule that holds the model; `a.b` for one inside a submodule.
        seed: Seed of noise, routers and fresh channels.
        tolerance: Largest allowed difference between logits, times max(1, largest logit).
        require_symmetry_breaking: Whether copies that would stay equal are an error instead of a finding.
        rewarm_peak: For `asymmetric`, peak of the learning rate of new entries, relative to the others'.
        rewarm_steps: For `asymmetric`, steps to that peak, and again down to the common rate.
        betas: For `asymmetric`, Adam's betas, or None for those of the optimizer's first group.
        phase_name: Name of the phase in reports; None for `phase N`.
        index: Index of the phase, part of the seed; None for one more than the previous phase's, or 0.
        on_boundary: Function called with the boundary's record, even if a check failed.
        dist_context: Process group of the run; None for torch's. Every rank grows the model and rank 0 checks it;
            if the model is sharded, all ranks do both together.

    Raises:
        UserError: If an argument is wrong, or an operator is not registered.
    """

    def __init__(
        self,
        operators: Sequence[Operator],
        *,
        previous: PhaseState | None = None,
        optimizer_state: str = "carry",
        probe: Tensor | None = None,
        attribute: str = "model",
        seed: int = 0,
        tolerance: float = 1e-4,
        require_symmetry_breaking: bool = False,
        rewarm_peak: float = 1.3,
        rewarm_steps: int = 250,
        betas: tuple[float, float] | None = None,
        phase_name: str | None = None,
        index: int | None = None,
        on_boundary: Callable[[BoundaryRecord], None] | None = None,
        dist_context: DistributedContext | None = None,
    ) -> None:
        if optimizer_state not in OPTIMIZER_STATE_MODES:
            reason = f"must be one of {', '.join(OPTIMIZER_STATE_MODES)}"
            raise UserError("optimizer_state", optimizer_state, reason)
        check_operators(operators)
        self.operators, self.previous, self.mode = list(operators), previous, optimizer_state
        self._operator_dicts = operators_to_dicts(self.operators)
        self.probe, self.attribute, self.seed = probe, attribute, seed
        self.tolerance = tolerance
        self.require_symmetry_breaking = require_symmetry_breaking
        self.rewarm_peak, self.rewarm_steps, self.betas = rewarm_peak, rewarm_steps, betas
        if index is None:
            index = 0 if previous is None else previous.index + 1
        self.index = index
        self.phase_name = phase_name or f"phase {index}"
        self.on_boundary, self.dist_context = on_boundary, dist_context
        self.boundary: BoundaryRecord | None = None
        """Record of the growth, once it has happened."""
        self.scaling = StepScaling()
        self._scaled_steps: ScaledSteps | None = None
        self._initial_states: dict[str, ParameterState] = {}
        self._other_states: dict[str, ParameterState] = {}
        self._optimizer_names: dict[str, str] = {}
        self._other_optimizer_names: dict[str, str] = {}
        self._are_states_scaled = self._are_states_plain = False
        self._is_set_up = self._has_fit_started = False
        self._loaded: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Grow the model and the optimizer state, and check the result.

        Raises:
            UserError: If the model cannot grow, or the trainer is set up in a way that would undo the growth.
            GrowthError: If a check failed, or the ranks grew different models.
        """
        if stage != "fit" or self._is_set_up:
            return
        self._check_trainer(trainer, pl_module)
        self._is_set_up = True
        previous = self.previous
        if previous is None and self.operators:
            model = _get_attribute(pl_module, self.attribute)
            previous = PhaseState(model, phase_name="start", index=self.index)
        if previous is not None:
            self._grow(trainer, pl_module, previous)

    def begin_with(
        self, states: dict[str, ParameterState], scaling: StepScaling | None = None
    ) -> None:
        """Begin with a given optimizer state instead of a grown one; the model is set by someone else.

        Args:
            states: State by parameter name.
            scaling: Scaling in the middle of which the state was saved; None for a plain state.
        """
        self._initial_states = states
        if scaling is not None:
            self.scaling, self._are_states_scaled = scaling, True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the optimizers their state, and scale their steps if the mode needs it.

        Raises:
            UserError: If the class of a parameter's optimizer has changed, or the mode cannot scale its steps.
        """
        model = _get_attribute(pl_module, self.attribute)
        self._check_optimizer_classes(trainer.optimizers, model, pl_module)
        if not hasattr(pl_module, "step_scaling"):
            self._scaled_steps = ScaledSteps.build(
                self.scaling, self.mode, model, trainer.optimizers, self.betas
            )
        scalings = self._scaled_steps or self.scaling
        if self._loaded is not None:
            scalings.load_state_dict(self._loaded)
            self._are_states_scaled = True
        if not self._are_states_scaled:
            scalings.scale_state(self._initial_states)
        restore_optimizer_states(model, trainer.optimizers, self._initial_states)
        names = {name for name, _ in pl_module.named_parameters()}
        others = {name: state for name, state in self._other_states.items() if name in names}
        restore_optimizer_states(pl_module, trainer.optimizers, others)
        self._has_fit_started = True
        self._initial_states, self._other_states = {}, {}

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Scale the gradients, if the mode needs it and the module does not do it itself."""
        if self._scaled_steps is not None:
            model = _get_attribute(pl_module, self.attribute)
            self._scaled_steps.before_step(model, optimizer)

    def collect_state(self, trainer: Trainer) -> PhaseState:
        """Return the state after the phase, for `PhaseState.from_trainer`; no step may follow.

        Raises:
            UserError: If the trainer has no optimizers, because it has not trained in this process.
        """
        if not trainer.optimizers:
            reason = "has not trained in this process; use a strategy that does (ddp instead of ddp_spawn)"
            raise UserError("trainer", type(trainer.strategy).__name__, reason)
        module = trainer.lightning_module
        model = _get_attribute(module, self.attribute)
        states = get_optimizer_states(model, trainer.optimizers)
        if not self._are_states_plain:
            (self._scaled_steps or self.scaling).unscale_state(states)
            self._are_states_plain = True
        return PhaseState(
            model=model,
            optimizer_states=states,
            phase_name=self.phase_name,
            index=self.index,
            scale_factors=self.scaling.carried_factors,
            optimizer_names=find_optimizer_names(model, trainer.optimizers),
            other_states=get_optimizer_states(module, trainer.optimizers, without=model),
            other_optimizer_names=find_optimizer_names(module, trainer.optimizers, without=model),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what a Lightning checkpoint needs to resume within this phase, in plain values."""
        if self.boundary is None:
            return {}
        scalings = self._scaled_steps or self.scaling
        return {
            "operators": self.boundary.operators,
            "scaling": scalings.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume within the phase whose state this is; Lightning calls it after `setup`, or after `on_fit_start`.

        Raises:
            UserError: If that phase grew by other operators.
        """
        operators = [] if self.boundary is None else self.boundary.operators
        if state_dict.get("operators", []) != operators:
            reason = (
                f"the checkpoint is from a phase that grew by {state_dict.get('operators', [])}; "
                "give the callback the same operators"
            )
            raise UserError("operators", operators, reason)
        if not operators:
            return
        if self._has_fit_started:
            (self._scaled_steps or self.scaling).load_state_dict(state_dict["scaling"])
        else:
            self._loaded = state_dict["scaling"]

    def _grow(self, trainer: Trainer, pl_module: LightningModule, previous: PhaseState) -> None:
        start = time.perf_counter()
        old_model = previous.model
        if old_model is None:
            raise UserError("previous", previous.phase_name, EMPTY_REASON)
        self._check_old_parameters(pl_module, old_model)
        if self.operators and self.mode != "reset":
            check_growable_states(previous.optimizer_states, old_model, previous.optimizer_names)
        if self.mode in ("exact", "asymmetric") and not hasattr(pl_module, "step_scaling"):
            check_scalable_names(previous.optimizer_names.values(), self.mode)
        growth_map = build_growth_map(old_model, self.operators)
        rng = GrowthRng(self.seed, boundary_index=self.index)
        model = apply_growth(old_model, growth_map, rng)
        check: Callable[[], GrowthReport] = partial(
            detailed_growth_check,
            old_model=old_model,
            new_model=model,
            probe=self._get_probe(old_model),
            device=trainer.strategy.root_device,
            tolerance=self.tolerance,
            growth_map=growth_map,
            require_symmetry_breaking=self.require_symmetry_breaking,
            unequal_moments=self.mode == "asymmetric" and bool(previous.optimizer_states),
        )
        dist_context = self.dist_context or DistributedContext.current()
        report = dist_context.run_on_rank0(check) if get_device_mesh(model) is None else check()
        self.boundary = BoundaryRecord(
            from_phase=previous.phase_name,
            to_phase=self.phase_name,
            growth=growth_map.with_rounding(
                {name: tensor.dtype for name, tensor in model.state_dict().items()}
            ).description,
            operators=self._operator_dicts,
            report=report,
            noise=rng.noise_log.summarize(),
            optimizer_state=self.mode,
            inexact_because=explain_inexactness(growth_map) if self.mode == "exact" else [],
            seconds=time.perf_counter() - start,
        )
        if self.on_boundary is not None:
            self.on_boundary(self.boundary)
        raise_if_failed(self.boundary)
        _set_attribute(pl_module, self.attribute, model)
        previous.model = None
        del old_model, check
        release_memory()
        with torch.no_grad():
            self._initial_states = grow_optimizer_state(
                growth_map, previous.optimizer_states, self.mode
            )
        others, previous.other_states = previous.other_states, {}
        if self.mode != "reset":
            self._other_states = others
            self._optimizer_names = {
                name: previous.optimizer_names[source]
                for name in self._initial_states
                if (source := growth_map.tensors[name].source) in previous.optimizer_names
            }
            self._other_optimizer_names = previous.other_optimizer_names
        self.scaling = make_step_scaling(
            self.mode,
            growth_map,
            previous.scale_factors,
            self.rewarm_peak,
            self.rewarm_steps,
            self.betas,
        )
        if hasattr(pl_module, "step_scaling"):
            pl_module.step_scaling = self.scaling  # type: ignore[assignment]
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        check_replicas_match(dist_context, {"": parameters, **self._initial_states})

    def _check_trainer(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that nothing that the trainer does would undo or miss the growth."""
        strategy = trainer.strategy
        is_known = isinstance(strategy, STRATEGIES) and not isinstance(strategy, OTHER_STRATEGIES)
        if not is_known or getattr(strategy, "_start_method", None) not in (None, "popen"):
            name = type(trainer.strategy).__name__
            reason = (
                "is not supported; use one device, strategy=ddp or ModelParallelStrategy (FSDP2)"
            )
            raise UserError("strategy", name, reason)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if callback is self:
                break
            if _has_copied(callback, pl_module):
                reason = "has copied the model before it grew; put GrowthCallback before it"
                raise UserError("callbacks", type(callback).__name__, reason)
        if (
            self.mode == "exact"
            and trainer.gradient_clip_val is not None
            and not hasattr(pl_module, "step_scaling")
        ):
            reason = (
                "Lightning's clipping counts the copies of a gradient separately; leave it out, or clip in "
                "configure_gradient_clipping with the module's step_scaling"
            )
            raise UserError("gradient_clip_val", trainer.gradient_clip_val, reason)

    def _check_old_parameters(self, pl_module: LightningModule, old_model: nn.Module) -> None:
        """Check that the module holds parameters of the model nowhere else, where they could not grow."""
        old = {id(parameter) for parameter in old_model.parameters()}
        for name, parameter in pl_module.named_parameters(remove_duplicate=False):
            if id(parameter) in old and not name.startswith(f"{self.attribute}."):
                reason = (
                    f"{type(pl_module).__name__} also holds a part of the model there, which cannot grow; "
                    "reach it through the model instead"
                )
                raise UserError("attribute", name, reason)

    def _get_probe(self, model: nn.Module) -> Tensor:
        if self.probe is not None:
            return self.probe
        config = growth_config_of(model)
        sequences, length = PROBE_SIZE
        shape = (sequences, min(length, config.max_seq_len))
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(config.vocab_size, shape, generator=generator)

    def _check_optimizer_classes(
        self, optimizers: Sequence[Optimizer], model: nn.Module, pl_module: LightningModule
    ) -> None:
        pairs = ((model, self._optimizer_names), (pl_module, self._other_optimizer_names))
        found = [
            (name, earlier.get(name, now), now)
            for module, earlier in pairs
            for name, now in find_optimizer_names(module, optimizers).items()
        ]
        for name, before, now in found:
            if before != now:
                reason = (
                    f"the optimizer of {name} was {before} and is {now}, whose state is different; "
                    "use optimizer_state=reset"
                )
                raise UserError("optimizer_state", self.mode, reason)


def raise_if_failed(boundary: BoundaryRecord) -> None:
    """Raise an error that names all failed checks, if there are any.

    Raises:
        GrowthError: If a check failed.
    """
    failed = [
        f"{name}: {check.summary}" for name, check in boundary.report.checks.items() if not check
    ]
    if failed:
        raise GrowthError(
            f"growing {boundary.from_phase} → {boundary.to_phase} failed its checks. "
            + "; ".join(failed)
            + f". Causes and remedies: {CHECKS_PAGE}"
        )


def _get_attribute(pl_module: LightningModule, attribute: str) -> nn.Module:
    try:
        model = attrgetter(attribute)(pl_module)
    except AttributeError:
        model = None
    if not isinstance(model, nn.Module):
        reason = f"{type(pl_module).__name__} has no model there; name the attribute that holds it"
        raise UserError("attribute", attribute, reason)
    return model


def _set_attribute(pl_module: LightningModule, attribute: str, model: nn.Module) -> None:
    parent, _, name = attribute.rpartition(".")
    setattr(pl_module.get_submodule(parent), name, model)


def _has_copied(callback: Callback, pl_module: LightningModule) -> bool:
    """Return whether a callback holds a copy of the module's model, as weight averaging does after its `setup`."""
    names = {name for name, _ in pl_module.named_parameters()}
    held = (value for value in vars(callback).values() if isinstance(value, nn.Module))
    return any(
        name.removeprefix("module.") in names
        for module in held
        for name, _ in module.named_parameters()
    )
