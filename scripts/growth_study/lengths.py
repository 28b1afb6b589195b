"""How long the runs of an arm are: in shares of the plan's FLOPs, each with its decay at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from growlm.config.phase_plan import Plan
from growlm.config.schema import PhaseConfig, RunConfig

DECAY = 0.2
"""Of a run's FLOPs, at its end. (`schedule.decay_fraction` is of steps, which cost more after a growth.)"""


def scaled(config: RunConfig, factor: float, grows_at: float | None = None) -> RunConfig:
    """The plan with every phase's FLOPs and the warm-up times a factor, and, if asked for, the growth moved.

    Args:
        config: Whose phases have their lengths in FLOPs; there are several where the growth is moved.
        factor: 1 for the plan's own.
        grows_at: Share of the FLOPs that the first phase gets; the others share the rest as before.
    """
    flops = [(settings.flops or 0.0) * factor for settings in config.phases.values()]
    if grows_at is not None:
        later = sum(flops) * (1 - grows_at) / sum(flops[1:])
        flops = [sum(flops) * grows_at, *(own * later for own in flops[1:])]
    phases = zip(config.phases.items(), flops, strict=True)
    warmup = round(config.schedule.warmup_steps * factor)
    return replace(
        config,
        phases={name: replace(s, flops=f) for (name, s), f in phases},
        schedule=replace(config.schedule, warmup_steps=warmup),
    )


def trained_for(config: RunConfig, plan: Plan, share: float, shares: Sequence[float]) -> RunConfig:
    """The run that ends, decay included, after a share of the plan's FLOPs.

    The last phase is cut where the shorter runs of the same arm begin to decay, so that what they share is
    trained once (`reuse.phases`).

    Args:
        config: The arm's run.
        plan: Made from it.
        share: Of the FLOPs, at least those before the last phase.
        shares: All that the arm is run for. With a cosine there can be only one.
    """
    last = plan.phases[-1]
    total = sum(phase.num_steps * phase.flops_per_step for phase in plan.phases)
    before = total - last.num_steps * last.flops_per_step
    ends = {s: round((s * total - before) / last.flops_per_step) for s in shares if s <= share}
    decays = {
        s: min(end, round(DECAY * s * total / last.flops_per_step)) for s, end in ends.items()
    }
    cuts = [0, *(end - decays[s] for s, end in sorted(ends.items())), ends[share]]
    if len(shares) == 1:
        cuts = [0, ends[share]]
    phases = {
        phase.name: replace(phase.settings, steps=phase.num_steps, flops=None)
        for phase in plan.phases
    }
    phases |= _cut(last.name, phases.pop(last.name), cuts)
    steps = sum(settings.steps or 0 for settings in phases.values())
    schedule = replace(config.schedule, decay_fraction=decays[share] / steps)
    return replace(config, phases=phases, schedule=schedule)


def _cut(name: str, settings: PhaseConfig, cuts: Sequence[int]) -> dict[str, PhaseConfig]:
    """A phase as several in a row; only the first one grows."""
    parts: dict[str, PhaseConfig] = {}
    for start, end in pairwise(cuts):
        if end == start:
            continue
        part = replace(settings, steps=end - start)
        if parts:
            part = replace(part, grow=[], warmup_steps=0, optimizer_state="carry")
        parts[name if not parts else f"{name}_from_{start}"] = part
    return parts
