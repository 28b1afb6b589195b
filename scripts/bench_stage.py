"""Measure what Lightning, the callbacks, the history and the logger cost over a bare loop on the same model.

    python scripts/bench_stage.py                  (about 3 minutes on two cores)
    python scripts/bench_stage.py --json FILE

Both sides run in turns, each in its own process. The side "stage" calls `growlm.training.run_plan` with W&B
offline.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

from turns import Step, Steps, Turns, take_turns  # isort: skip - imports growlm before torch

import torch
from lightning.pytorch import Callback
from rich.console import Console
from rich.table import Table

from growlm.config import load_config
from growlm.model import TransformerLM
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.runtime.memory import keep_freed_memory
from growlm.training import run_plan

WARMUP = 20


@dataclass(frozen=True)
class Case:
    """A model, and the largest share of a step that `run_plan` may add."""

    overrides: tuple[str, ...]
    aim: float

    def config(self) -> Any:
        """Return the config of a run with more steps than the benchmark will use."""
        return load_config(
            "phase_plan=dense", "phases.dense.steps=1000000", "phases.dense.tokens=null",
            "logger.mode=offline", *self.overrides,
        )  # fmt: skip


CASES = {
    "20 ms": Case(
        ("model.n_layers=2", "model.d_model=128", "model.d_ff=512", "phases.dense.batch_size=10"), 0.08
    ),
    "100 ms": Case(
        ("model.n_layers=4", "model.d_model=256", "model.d_ff=1024", "phases.dense.batch_size=16"), 0.03
    ),
}  # fmt: skip


def make_bare_step(overrides: tuple[str, ...]) -> Step:
    """Return one step of a hand-written training loop."""
    config = Case(overrides, 0.0).config()
    keep_freed_memory()
    shape = config.model.to_model_config(1024)
    model = TransformerLM(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batch = torch.randint(
        shape.vocab_size, (config.phases["dense"].batch_size, config.sequence_length + 1)
    )

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


@dataclass(frozen=True)
class Stage:
    """The side that runs a plan with `run_plan`."""

    overrides: tuple[str, ...]

    def __call__(self, turns: Turns) -> None:
        """Train until there are no more turns."""
        with tempfile.TemporaryDirectory() as folder:
            config = Case((*self.overrides, f"run_dir='{folder}/run'"), 0.0).config()
            try:
                run_plan(config, [_TurnsCallback(turns)])
            except _Done:
                return


class _Done(Exception):  # noqa: N818 - it is not an error
    pass


class _TurnsCallback(Callback):
    """Callback that measures from the start of one step to the start of a later one, so that everything counts."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.steps, self.left, self.start = 0, WARMUP, 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Report the turn that has ended, and wait for the next."""
        if self.left == 0:
            if self.steps:
                self.turns.report(time.perf_counter() - self.start)
            self.left = self.steps = self.turns.await_turn()
            if not self.steps:
                raise _Done
            self.start = time.perf_counter()
        self.left -= 1


def main() -> None:
    """Measure the cases and print the table; write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    table = Table("steps of", "bare loop", "stage", "costs", "aim")
    results = {}
    for name, case in CASES.items():
        measured = take_turns(
            {
                "bare loop": Steps(make_bare_step, (case.overrides,), WARMUP),
                "stage": Stage(case.overrides),
            },
            arguments.rounds,
            steps=15,
        )
        loop, stage = measured["bare loop"], measured["stage"]
        # Compared round by round, because the speed of the machine changes by more than the measured cost.
        cost = (
            statistics.median(s / b for s, b in zip(stage.seconds, loop.seconds, strict=True)) - 1
        )
        table.add_row(
            name, f"{loop.median * 1e3:.1f} ms", f"{stage.median * 1e3:.1f} ms", f"{cost:.1%}",
            f"{case.aim:.0%}",
        )  # fmt: skip
        results[name] = {
            "cost": cost,
            "sides": {side: m.to_json() for side, m in measured.items()},
        }
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    run_main_and_exit(main)
