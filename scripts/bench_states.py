"""What it costs that a run can be resumed: time spent in writing states, against the time of the whole run.

    python scripts/bench_states.py                                      (quickstart, about a minute on two cores)
    python scripts/bench_states.py checkpoint.every_steps=20            (or any other overrides)
    python scripts/bench_states.py --json FILE

One run, in which every writing is timed, so that the share does not depend on how fast the machine is just now.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from rich.filesize import decimal

from growlm.checkpoint.run_state import write_state
from growlm.config import load_config
from growlm.training import run_plan


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", help="of growlm.train")
    arguments = parser.parse_args()
    written: list[dict[str, float]] = []

    def timed(resume_dir: Path, global_step: int, *rest: Any) -> None:
        start = time.perf_counter()
        write_state(resume_dir, global_step, *rest)
        seconds = time.perf_counter() - start
        files = (resume_dir / f"{global_step:09d}").iterdir()
        written.append({"seconds": seconds, "bytes": sum(path.stat().st_size for path in files)})

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("growlm.training.run.write_state", timed),
    ):
        config = load_config("logger=none", *arguments.overrides, f"run_dir={folder}/run")
        summary = run_plan(config).summary
    seconds = sum(state["seconds"] for state in written)
    size = sum(state["bytes"] for state in written)
    share = seconds / summary.wall_time_s
    states = f"{len(written)} states, {decimal(round(size))}"
    Console().print(f"{states}: {seconds:.2f} s of {summary.wall_time_s:.1f} s, {share:.2%}")
    if arguments.json:
        results = {"states": written, "wall_time_s": summary.wall_time_s, "share": share}
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
