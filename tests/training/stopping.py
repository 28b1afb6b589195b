"""Runs that are stopped and go on, and what must then be equal."""

import json
import os
import signal

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file

TIMES = {"time_s", "tokens_per_second", "mfu", "seconds"}


class SignalAt(Callback):
    """Sends this process a signal in a step of the run."""

    def __init__(self, global_step, number=signal.SIGTERM):
        self.global_step, self.number = global_step, number

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        phase = pl_module.phase
        done = trainer.global_step
        is_whole = (batch_idx + 1) % phase.settings.accumulate == 0
        if is_whole and phase.first_step + done == self.global_step:
            os.kill(os.getpid(), self.number)


def slow(*values):
    """Parameters that run with `-m slow` only."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def history(run_dir):
    """All lines of the history but their times."""
    lines = (run_dir / "checkpoints" / "training_history.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def assert_same_run(one, other):
    """Weights to the bit, every line of the history, and the boundaries."""
    artefacts = {path.name for path in (one / "checkpoints").iterdir()}
    assert artefacts == {path.name for path in (other / "checkpoints").iterdir()}
    for name in artefacts - {"training_history.jsonl"}:
        first, second = (
            load_file(run / "checkpoints" / name / "model.safetensors") for run in (one, other)
        )
        assert first.keys() == second.keys()
        for key, tensor in first.items():
            assert torch.equal(tensor, second[key]), f"{name}: {key}"
    assert history(one) == history(other)
    boundaries = [json.loads((run / "boundaries.json").read_text()) for run in (one, other)]
    for boundary in (b for run in boundaries for b in run):
        boundary.pop("seconds")
    assert boundaries[0] == boundaries[1]
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, other)]
    assert len(summaries[0]["phases"]) == len(summaries[1]["phases"])
    for before, after in zip(*(summary["phases"] for summary in summaries), strict=True):
        for key in (
            "first_loss",
            "final_loss",
            "initial_val_loss",
            "val_loss",
            "sample",
            "router_check",
        ):
            assert before[key] == after[key], key
