"""Runs on several processes of this machine, for tests: real processes, that meet through torch.distributed."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed import TCPStore

from tests.commands.processes import CommandProcess
from tests.machines.imitation import imitate_machine

THREADS = "1"
PROGRAM = __file__
"""What `main` is the program of."""
STORES: list[TCPStore] = []
"""Where processes meet; here, so that no port has to be found free and stay so until a process has started."""


def start(command: list[str], processes: int = 2, **variables: str) -> list[CommandProcess]:
    """Start a program as `torchrun` would, but for its watching: who kills one sees what the others do."""
    STORES.append(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
    common = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(STORES[-1].port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": THREADS,
        "PYTHONPATH": os.pathsep.join(sys.path),
        **variables,
    }
    program, *arguments = command
    return [
        CommandProcess(
            program,
            arguments,
            folder=os.getcwd(),
            streams=tempfile.mkdtemp(),
            environment={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(processes)
    ]


def outcome(processes: list[CommandProcess], timeout: float = 300) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    try:
        ended = [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
            shutil.rmtree(process.streams)
    return [(each.returncode, each.stdout, each.stderr) for each in ended]


def run_all(jobs: list[list[str]], processes: int = 2) -> None:
    """Run plans one after another on the same processes.

    Args:
        jobs: Each a folder, maybe one of `FAULTS`, and overrides of the tiny run.
        processes: Their number.
    """
    ended = outcome(start([PROGRAM, json.dumps(jobs)], processes))
    assert [code for code, _, _ in ended] == [0] * processes, [text for _, *text in ended]


def history(run_dir: Path) -> list[dict]:
    """The lines of a run's history."""
    lines = (run_dir / "checkpoints" / "training_history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def largest_difference(one: Path, other: Path) -> float:
    """Of any loss, of training, validation or a boundary, between two runs of the same steps."""
    return max(loss_differences(one, other).values())


def loss_differences(one: Path, other: Path) -> dict[tuple[str, int], float]:
    """Largest difference of any loss, by phase and step; a boundary's by the phase that it leads to and 0."""
    losses = ("loss", "val_loss", "aux_loss", "loss_before", "loss_after", "grad_norm")
    found: dict[tuple[str, int], float] = {}
    pairs = list(zip(history(one), history(other), strict=True))
    for mine, theirs in pairs:
        assert mine.keys() == theirs.keys()
        place = mine.get("phase") or mine.get("to"), mine.get("step", 0)
        for key in set(losses) & mine.keys():
            found[place] = max(found.get(place, 0.0), abs(mine[key] - theirs[key]))
    return found


class OneApart(Callback):
    """Moves a weight of one process alone at the end of every phase, as a fault of its memory would."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank == 1:
            with torch.no_grad():
                pl_module.model.final_norm.weight[0] += 1e-7


class OneNaN(Callback):
    """The loss of one process alone is NaN in the second step of every phase."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        whole = pl_module.training_step

        def step(batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            is_hit = trainer.global_rank == 1 and batch_idx == 1
            return whole(batch, batch_idx) * (float("nan") if is_hit else 1.0)

        pl_module.training_step = step  # type: ignore[method-assign]


FAULTS = {"OneApart": OneApart, "OneNaN": OneNaN}


def main() -> int:
    """What each process does."""
    from growlm.training import run_plan
    from tests.training.tiny_run import tiny_config

    imitate_machine()
    for attempt, overrides in enumerate(json.loads(sys.argv[1])):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(attempt)  # they meet anew in every run
        run_dir, *rest = overrides
        faults = [FAULTS[rest.pop(0)]()] if rest and rest[0] in FAULTS else []
        run_plan(tiny_config(Path(run_dir), *rest), faults)
    return 0


if __name__ == "__main__":
    from growlm.runtime.exit_codes import exit_process, run_and_get_exit_code

    exit_process(run_and_get_exit_code(main))
