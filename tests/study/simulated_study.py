"""A study whose runs cost nothing: losses from a formula."""

import math

from growth_study.agenda import collect_losses, next_runs
from growth_study.arms import AXES, Arm

BUDGET = 1e12
BEST_RATE = {"continue": 3.2e-2, "scratch": 8e-3, "grown": 2e-3}
"""One above the grid, one inside, one below."""
AHEAD = {"grown": 1.45, "at 10%": 1.3}
"""These are where the others are after so many times as much."""


def loss(arm: Arm, rate: float, share: float, seed: int) -> float:
    best = BEST_RATE.get(arm.name, BEST_RATE["grown"])
    ahead = AHEAD.get(arm.name, 1.0)
    far = math.log2(rate / best) ** 2
    return 1.0 - 0.05 * math.log(share * ahead) + 0.01 * far + 0.001 * seed


def record(run):
    flops = run.share * BUDGET
    # The grown model's steps take 1.2 times as long for each operation.
    pace = 1.2e-9 if run.arm.baseline == "none" else 1e-9
    model = {"continue": 10, "scratch": 30}.get(run.arm.name, 20)
    phase = {"name": "all", "parameters": model, "active": model, "tokens": flops, "flops": flops}
    return {
        "key": run.title, "arm": run.arm.key, "seed": run.seed, "source_rate": run.source_rate,
        "rate": run.rate, "share": run.share, "flops": flops, "curve": [[flops / 2, 2.0], [flops, 1.0]],
        "loss": loss(run.arm, run.rate, run.share, run.seed),
        "phases": [{**phase, "seconds": flops * pace}],
        "boundaries": [{"to": "all", "jump": 0.0, "seconds": 0.0}],
    }  # fmt: skip


def simulate_runs(axes=AXES, at_once=2):
    """The records of all runs, in the order in which they start."""
    records = []
    while True:
        taken = []
        while len(taken) < at_once:
            groups = next_runs(axes, collect_losses(records), taken)
            if not groups:
                break
            taken.append(groups[0][0])
        if not taken:
            return records
        records += [record(run) for run in taken]
