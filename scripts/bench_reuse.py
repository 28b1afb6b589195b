"""Measure the time that reusing phases saves in a sweep, and check that the losses stay the same.

    python scripts/bench_reuse.py                            (6 jobs of the quickstart, twice: 10 to 15 minutes)
    python scripts/bench_reuse.py phases.dense.steps=20      (any overrides of growlm.train)
    python scripts/bench_reuse.py --json FILE

Every job of the sweep runs with and without reuse, in turns, one after another in one process as the sweep's
launcher does it. P is the time of the shared phases, R that of the rest of a run. The wall time with reuse may be
at most 1.1 (P + 6R) / 6(P + R) of the time without.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Table

from growlm.config import load_config
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.training import run_plan

NOISES, SCALES = (1e-5, 1e-3, 2e-2), (1.5, 2)
SHARED = ("dense", "moe")
"""Phases that neither sweep parameter changes."""


def main() -> None:
    """Run both sides in turns and print the comparison; write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", help="overrides of growlm.train")
    arguments = parser.parse_args()
    console = Console()
    jobs = [
        f"growth.noise_std={noise:g} growth.scale_factor={scale}"
        for noise, scale in product(NOISES, SCALES)
    ]
    seconds: dict[str, list[float]] = {"always": [], "never": []}
    losses: dict[str, list[list[float]]] = {"always": [], "never": []}
    shared = []
    table = Table("job".ljust(48), "with reuse", "without", "final losses")
    with tempfile.TemporaryDirectory() as folder:
        for number, parameters in enumerate(jobs):
            # The sides take turns to be first, so that neither has the quieter machine.
            for reuse in ("always", "never") if number % 2 else ("never", "always"):
                console.print(
                    f"job {number + 1} of {len(jobs)}, reuse.phases={reuse}: {parameters}"
                )
                overrides = [
                    *parameters.split(),
                    f"reuse.phases={reuse}",
                    f"reuse.folder={folder}/phases",
                ]
                run_dir = Path(folder, f"{number}_{reuse}")
                start = time.perf_counter()
                with Path(folder, "log").open("a") as log, contextlib.redirect_stdout(log):
                    config = load_config(
                        "logger=none", *arguments.overrides, *overrides, f"run_dir={run_dir}"
                    )
                    summary = run_plan(config).summary
                seconds[reuse].append(time.perf_counter() - start)
                losses[reuse].append(
                    [p.final_loss for p in summary.phases] + [p.val_loss for p in summary.phases]
                )
                if reuse == "never":
                    shared.append(sum(p.wall_time_s for p in summary.phases if p.name in SHARED))
            same = losses["always"][-1] == losses["never"][-1]
            table.add_row(
                parameters,
                f"{seconds['always'][-1]:.1f} s",
                f"{seconds['never'][-1]:.1f} s",
                "the same bits" if same else "DIFFERENT",
            )
    prefix = sum(shared) / len(shared)
    total = {reuse: sum(values) for reuse, values in seconds.items()}
    rest = total["never"] / len(jobs) - prefix
    results = {
        "seconds": seconds,
        "final_losses": losses["always"],
        "identical": losses["always"] == losses["never"],
        "prefix_s": prefix,
        "rest_s": rest,
        "ratio": total["always"] / total["never"],
        "bound": 1.1 * (prefix + len(jobs) * rest) / (len(jobs) * (prefix + rest)),
    }
    console.print(table)
    console.print(
        f"P = {prefix:.1f} s, R = {rest:.1f} s; with reuse {total['always']:.0f} s, without "
        f"{total['never']:.0f} s: {results['ratio']:.3f} (bound {results['bound']:.3f}); losses "
        f"{'identical' if results['identical'] else 'DIFFERENT'}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    run_main_and_exit(main)
