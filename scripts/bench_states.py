"""Measure the share of a run's time that is spent writing resume states.

    python scripts/bench_states.py                                      (quickstart, about a minute on two cores)
    python scripts/bench_states.py checkpoint.every_steps=20            (any overrides of growlm.train)
    python scripts/bench_states.py --json FILE

There is one run, and every write in it is timed, so that the share does not depend on the momentary speed of the
machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from rich.console import Console

from growlm.config import load_config
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.training import run_plan


def main() -> None:
    """Run the plan and print the share; write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", help="overrides of growlm.train")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = load_config("logger=none", *arguments.overrides, f"run_dir={folder}/run")
        summary = run_plan(config).summary
    results = {
        "states": summary.states_written,
        "seconds": summary.states_s,
        "wall_time_s": summary.wall_time_s,
        "share": summary.states_s / summary.wall_time_s,
    }
    Console().print(
        f"{results['states']} states: {results['seconds']:.2f} s of {results['wall_time_s']:.1f} s, "
        f"{results['share']:.2%}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    run_main_and_exit(main)
