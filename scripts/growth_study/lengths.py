"""Set the lengths of runs as shares of the plan's FLOPs, each with its own decay at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from growlm.config.phase_plan import Plan
from growlm.config.schema import PhaseConfig, RunConfig

DECAY = 0.2
"""Share of a run's FLOPs that the decay takes. (`schedule.decay_fraction` counts steps, which cost more after a
growth.)"""


def scale_lengths(config: RunConfig, factor: float, grows_at: float | None = None) -> RunConfig:
    """Scale the FLOPs of every phase and the warm-up, and move the growth if asked to.

    Args:
        config: Config whose phases have their lengths in FLOPs; it needs several phases if the growth is moved.
        factor: Factor of all lengths; 1 leaves them unchanged.
        grows_at: Share of the FLOPs for the first phase; the other phases keep their proportions.
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


def shorten_run(config: RunConfig, plan: Plan, share: float, shares: Sequence[float]) -> RunConfig:
    """Return the config of a run that ends, decay included, after a share of the plan's FLOPs.

    The last phase is cut where the shorter runs of the same arm start to decay, so that the shared part is trained
    once (`reuse.phases`).

    Args:
        config: Config of the arm's longest run.
        plan: Plan made from the config.
        share: Share of the FLOPs, at least that of the phases before the last one.
        shares: All shares that the arm trains for. With a cosine schedule there can be only one.
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
    phases |= _split_phase(last.name, phases.pop(last.name), cuts)
    steps = sum(settings.steps or 0 for settings in phases.values())
    schedule = replace(config.schedule, decay_fraction=decays[share] / steps)
    return replace(config, phases=phases, schedule=schedule)


def _split_phase(name: str, settings: PhaseConfig, cuts: Sequence[int]) -> dict[str, PhaseConfig]:
    """Cut a phase into consecutive phases, of which only the first grows."""
    parts: dict[str, PhaseConfig] = {}
    for start, end in pairwise(cuts):
        if end == start:
            continue
        part = replace(settings, steps=end - start)
        if parts:
            part = replace(part, grow=[], warmup_steps=0, optimizer_state="carry")
        parts[name if not parts else f"{name}_from_{start}"] = part
    return parts
