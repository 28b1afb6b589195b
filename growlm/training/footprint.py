"""How much memory and disk a phase takes, known before anything is allocated.

Activations come from a dry run of forward and backward on fake tensors, which have shapes and no memory; with one
and with two layers, since every further layer adds the same. Everything else is arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from growlm.config.schema import RunConfig
from growlm.growth.engine import table_of
from growlm.growth.grow import plan_growth
from growlm.growth.optimizer_state import FACTORED, state_shapes
from growlm.model import experts
from growlm.model.config import ModelConfig
from growlm.model.report import parameter_report
from growlm.model.transformer import TransformerLM
from growlm.training.optimizer import maps_inside
from growlm.training.plan import Plan, PlannedPhase

BYTES = 4
"""Of a weight, a gradient and a moment: fp32. Half precision is used in products only."""
OPTIMIZER_ENTRIES = {
    "adamw": ("exp_avg", "exp_avg_sq"),
    "sgd": ("momentum_buffer",),
    "adafactor": FACTORED,
}


@dataclass(frozen=True)
class Footprint:
    """Bytes of a phase, above what importing the libraries takes."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """The most that forward and backward hold at once, without gradients that are there by then."""
    training_peak: int
    growth_peak: int
    """While the model grows and is checked; 0 in the first phase."""
    disk: int
    """Artefacts that the phase leaves."""

    @property
    def peak(self) -> int:
        """The most memory that the phase takes."""
        return max(self.training_peak, self.growth_peak)


def plan_footprints(config: RunConfig, plan: Plan, bf16: bool) -> list[Footprint]:
    """The footprint of every phase.

    Args:
        config: The run.
        plan: Made from it.
        bf16: Whether products are in half precision.
    """
    footprints: list[Footprint] = []
    before: PlannedPhase | None = None
    for phase in plan.phases:
        footprints.append(_footprint(config, plan, phase, before, bf16))
        before = phase
    return footprints


def _footprint(
    config: RunConfig, plan: Plan, phase: PlannedPhase, before: PlannedPhase | None, bf16: bool
) -> Footprint:
    weights = BYTES * phase.parameters.total
    optimizer = optimizer_bytes(phase.model, config.optimizer.name)
    shape = (phase.settings.batch_size, plan.sequence_length)
    activations, backward = dry_run(phase.model, *shape, bf16)
    # With accumulation, the gradients of earlier passes are there all the time.
    passes = activations + weights if phase.settings.accumulate > 1 else backward
    scaled = weights if phase.settings.optimizer_state == "asymmetric" and before else 0
    growth_peak = 0
    if before is not None:
        old = BYTES * before.parameters.total
        old_states = optimizer_bytes(before.model, config.optimizer.name)
        growth_peak = old + old_states + weights
        if _has_twins(phase, before):  # the symmetry check takes a gradient then, in fp32
            probe = config.verification.probe_sequences * config.verification.probe_length
            growth_peak += weights + 2 * activations * probe // math.prod(shape)
    names = (phase.settings.save_as, phase.settings.save_initial_as)
    disk = weights * sum(name is not None for name in names)
    if config.checkpoint.save_optimizer and phase.settings.save_as:
        disk += optimizer
    return Footprint(
        weights=weights,
        gradients=weights,
        optimizer=optimizer,
        activations=activations,
        training_peak=weights + optimizer + max(passes, weights + scaled),
        growth_peak=growth_peak,
        disk=disk,
    )


def _has_twins(phase: PlannedPhase, before: PlannedPhase) -> bool:
    axes = plan_growth(before.model, phase.operators).axes
    return any(len(channels.twins()) for channels in axes.values())


def least_bytes(config: RunConfig, phase: PlannedPhase) -> int:
    """What the phase takes whatever its batch: weights, gradients, optimizer. No dry run."""
    return 2 * BYTES * phase.parameters.total + optimizer_bytes(phase.model, config.optimizer.name)


def optimizer_bytes(config: ModelConfig, name: str) -> int:
    """What an optimizer remembers of a model."""
    total = 0
    for row in table_of(config, TransformerLM).values():
        kind = name
        if name == "muon":
            kind = "sgd" if maps_inside(row.label) else "adamw"
        shapes = state_shapes(OPTIMIZER_ENTRIES[kind], row.shape)
        total += BYTES * sum(torch.Size(shape).numel() for shape in shapes.values())
    return total


def dry_run(config: ModelConfig, batch: int, time: int, bf16: bool) -> tuple[int, int]:
    """What one forward and backward pass hold at most, above weights and optimizer.

    Args:
        config: The model.
        batch: Sequences.
        time: Tokens of each.
        bf16: Whether products are in half precision.

    Returns:
        Bytes of activations alone, and of activations and gradients together at the worst moment.
    """
    one = _dry_run(replace(config, n_layers=1), batch, time, bf16)
    if config.n_layers == 1:
        return one
    two = _dry_run(replace(config, n_layers=2), batch, time, bf16)
    activations, both = (a + (config.n_layers - 1) * (b - a) for a, b in zip(one, two, strict=True))
    return activations, max(both, BYTES * parameter_report(config).total)


def _dry_run(config: ModelConfig, batch: int, time: int, bf16: bool) -> tuple[int, int]:
    return _dry_run_of(astuple(config), batch, time, bf16)


def _grouped_shape(rows: Tensor, weights: Tensor, *, offs: Tensor) -> Tensor:
    """What `grouped_mm` keeps and makes, in shape: its own fake version knows half precision only."""
    return rows @ weights[0]


@lru_cache(maxsize=256)
def _dry_run_of(fields: tuple[object, ...], batch: int, time: int, bf16: bool) -> tuple[int, int]:
    with FakeTensorMode():
        with torch.device("meta"):
            model = TransformerLM(ModelConfig(*fields))  # type: ignore[arg-type]
        state = {name: torch.empty(t.shape) for name, t in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        tracker = MemTracker()
        tracker.track_external(model)
        tokens = torch.zeros(batch, time + 1, dtype=torch.long)
        with (
            tracker,
            mock.patch.object(F, "grouped_mm", _grouped_shape),
            mock.patch.object(experts, "num_rows", lambda slots, ends: len(slots)),
            mock.patch.object(experts.Experts, "_can_group", return_value=True),
        ):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                loss = model.loss(tokens, [])
            loss.backward()
        peak = next(iter(tracker.get_tracker_snapshot("peak").values()))
    kinds = {getattr(kind, "name", str(kind)): size for kind, size in peak.items()}
    both = kinds["Total"] - kinds["PARAM"] - kinds["BUFFER"]
    return both - kinds["GRAD"], both
