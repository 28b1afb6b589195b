"""What each of Lightning's callbacks does in a plan: cases of tests, and the table of docs/own_classes.md."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch.callbacks as exported
import torch


def nothing(*_: Any) -> None:
    """Check nothing beyond the run itself."""


@dataclass
class Case:
    """How a callback is made, what it does in a plan, and what shows that it did."""

    make: Callable[[Path], list[Any]]
    text: str
    """What it does, for the table."""
    refused: str | None = None
    """Beginning of the reason why a plan does not accept it."""
    check: Callable[..., None] = nothing


def logs(*names: str) -> Callable[..., None]:
    """Return a check that the log has columns that begin with these names."""

    def check(run_dir: Path, run: Any, output: str, columns: set[str]) -> None:
        for name in names:
            assert any(column.startswith(name) for column in columns), (name, columns)

    return check


def has_best_of_each_phase(run_dir: Path, *_: Any) -> None:
    """Check that there is one Lightning checkpoint of each phase, which loads."""
    for phase, blocks in (("dense", 2), ("deep", 3)):
        (file,) = (run_dir / "lightning" / phase / "checkpoints").glob("*.ckpt")
        weights = torch.load(file, weights_only=False)["state_dict"]
        assert f"model.blocks.{blocks - 1}.feed_forward.down.weight" in weights
        assert f"model.blocks.{blocks}.feed_forward.down.weight" not in weights


def prints(text: str) -> Callable[..., None]:
    """Return a check that something was printed."""

    def check(run_dir: Path, run: Any, output: str, columns: set[str]) -> None:
        assert text in output

    return check


def counts_batches(batches: list[int]) -> Any:
    """Return a LambdaCallback that counts batches."""
    return exported.LambdaCallback(
        on_train_batch_end=lambda trainer, module, outputs, batch, index: batches.append(index)
    )


def two(batch: torch.Tensor) -> int:
    """Return the number of sequences."""
    return len(batch)


CASES: dict[str, Case] = {
    "BackboneFinetuning": Case(
        lambda _: [exported.BackboneFinetuning()], "", "unfreezes layers from epoch to epoch"
    ),
    "BatchSizeFinder": Case(lambda _: [exported.BatchSizeFinder()], "", "the batch size is part"),
    "DeviceStatsMonitor": Case(
        lambda _: [exported.DeviceStatsMonitor()],
        "logs the device's statistics; on a CPU it needs psutil",
        check=logs("DeviceStatsMonitor.on_train_batch_end"),
    ),
    "EarlyStopping": Case(
        lambda _: [exported.EarlyStopping("val/loss", patience=100)],
        "ends the phase, and the plan continues with the next one; the last weights are passed on, not the best; "
        "`summary.json` says why it ended",
    ),
    "EMAWeightAveraging": Case(
        lambda _: [exported.EMAWeightAveraging(decay=0.5)],
        "validates, saves and passes on the average, which starts anew in each phase",
    ),
    "GradientAccumulationScheduler": Case(
        lambda _: [exported.GradientAccumulationScheduler({0: 2})],
        "",
        "changes accumulation from epoch",
    ),
    "LambdaCallback": Case(lambda _: [counts_batches([])], "calls its functions in every phase"),
    "LearningRateFinder": Case(
        lambda _: [exported.LearningRateFinder()], "", "trains and takes back"
    ),
    "LearningRateMonitor": Case(
        lambda _: [exported.LearningRateMonitor()],
        "logs the rate of every parameter group, on the run's step axis",
        check=logs("lr-AdamW"),
    ),
    "ModelCheckpoint": Case(
        lambda _: [exported.ModelCheckpoint(monitor="val/loss")],
        "keeps the best of each phase, in `lightning/PHASE/checkpoints/` of the run's folder unless it has a "
        "`dirpath`",
        check=has_best_of_each_phase,
    ),
    "ModelPruning": Case(
        lambda _: [exported.ModelPruning("l1_unstructured")], "", "replaces weights by masked ones"
    ),
    "ModelSummary": Case(
        lambda _: [exported.ModelSummary()],
        "prints the modules of each phase's model",
        check=prints("Trainable params"),
    ),
    "OnExceptionCheckpoint": Case(
        lambda folder: [exported.OnExceptionCheckpoint(folder)], "", "makes trainer.fit begin from"
    ),
    "RichModelSummary": Case(
        lambda _: [exported.RichModelSummary()],
        "prints the modules of each phase's model",
        check=prints("Trainable params"),
    ),
    "RichProgressBar": Case(
        lambda _: [exported.RichProgressBar()], "shows the steps instead of growlm's own bars"
    ),
    "SpikeDetection": Case(
        lambda _: [exported.SpikeDetection()], "", "its state_dict() fails in this version"
    ),
    "StochasticWeightAveraging": Case(
        lambda _: [exported.StochasticWeightAveraging(swa_lrs=1e-3)],
        "",
        "averages from epoch to epoch",
    ),
    "ThroughputMonitor": Case(
        lambda _: [exported.ThroughputMonitor(two)],
        "logs batches, samples and FLOPs per second",
        check=logs("train/time", "train/batches"),
    ),
    "Timer": Case(
        lambda _: [exported.Timer("00:01:00:00")],
        "counts the time since the run was started or resumed; then a state is written and the run stops with "
        "exit code 0, as with `trainer.max_time`",
    ),
    "TQDMProgressBar": Case(
        lambda _: [exported.TQDMProgressBar()], "shows the steps instead of growlm's own bars"
    ),
    "WeightAveraging": Case(
        lambda _: [exported.WeightAveraging()],
        "validates, saves and passes on the average, which starts anew in each phase",
    ),
}


def render_table() -> str:
    """Return the table of docs/own_classes.md."""
    from growlm.training.callbacks.lightning_callbacks import REFUSED, SPIKE_REASON

    lines = ["| callback | in a plan |", "|---|---|"]
    for name, case in CASES.items():
        text = case.text
        if case.refused is not None:
            kind = getattr(exported, name)
            reasons = REFUSED | {exported.SpikeDetection: SPIKE_REASON}
            (reason,) = (why for refused, why in reasons.items() if issubclass(kind, refused))
            text = f"not supported: {reason}"
        lines.append(f"| `{name}` | {text} |")
    return "\n".join(lines) + "\n"
