"""Make the config of a run of the study, train it, and return its record."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import torch

from growlm.config import load_config
from growlm.config.flatten import flatten_config
from growlm.config.phase_plan import make_plan
from growlm.config.schema import RunConfig
from growlm.data import load_tokenizer
from growlm.reporting.reading.history_reader import History, read_history
from growlm.runtime.errors import RunError, UserError
from growlm.runtime.hardware import detect_machine, fingerprint_processor
from growlm.training import run_plan
from growlm.training.baseline import apply_baseline
from growlm.training.nan_check import NonFiniteError
from growlm.training.resume.fingerprint import CODE_DIGEST
from growth_study.arms import Arm, find_arm, get_axis
from growth_study.lengths import scale_lengths, shorten_run
from growth_study.record_file import Record

CURVE = 40
"""Largest number of points in the curve of a record."""


@dataclass(frozen=True)
class Study:
    """Settings that all runs of a study share."""

    overrides: tuple[str, ...]
    """Overrides of growlm.train besides those of the arms."""
    scale: float
    """Factor of all lengths."""
    work: Path
    """Folder for the files of runs while they train."""
    states: Path
    """Folder of the phases that runs share (`reuse.folder`)."""


@dataclass(frozen=True)
class Run:
    """One run of an arm: a seed, a learning rate and a length."""

    arm: Arm
    seed: int
    source_rate: float
    rate: float
    """Learning rate after the first growth, or that of the whole run for a baseline."""
    share: float

    @staticmethod
    def from_record(record: Record) -> Run | None:
        """Return the run that a record belongs to, or None if the study has no such run."""
        arm = find_arm(record["arm"])
        if arm is None or record["share"] not in arm.shares:
            return None
        return Run(arm, *(record[name] for name in ("seed", "source_rate", "rate", "share")))

    @property
    def title(self) -> str:
        """Description of the run in one line."""
        return f"{self.arm.key}, seed {self.seed}, rate {self.rate:g}, {self.share:.0%}"

    def config(self, study: Study) -> RunConfig:
        """Return the config of the run without writing anything.

        Raises:
            UserError: If an override of the study is invalid.
        """
        config = _load_cached_config(
            *get_axis(self.arm.axis).overrides, *self.arm.overrides,
            f"baseline={self.arm.baseline}", *study.overrides,
        )  # fmt: skip
        config = replace(
            config,
            seed=self.seed,
            data=replace(config.data, cache=str(study.work / "tokens")),
            reuse=replace(config.reuse, folder=str(study.states)),
        )
        first, *others = config.phases
        rates = {first: self.source_rate} | dict.fromkeys(others, self.rate)
        phases = {name: replace(s, lr=rates[name]) for name, s in config.phases.items()}
        config = scale_lengths(replace(config, phases=phases), study.scale, self.arm.grows_at)
        config = apply_baseline(config, lambda: None)
        vocabulary = load_tokenizer(config.tokenizer.name, config.tokenizer.path).vocab_size
        return shorten_run(config, make_plan(config, vocabulary), self.share, self.arm.shares)


@lru_cache
def _load_cached_config(*overrides: str) -> RunConfig:
    return load_config(*overrides)


def make_run_key(config: RunConfig, study: Study) -> str:
    """Return a key of what a config trains: a hash of all settings that are not defaults, paths apart."""
    defaults = dict(flatten_config(asdict(RunConfig())))
    settings = {
        name: value
        for name, value in flatten_config(asdict(config))
        if defaults.get(name, ...) != value
        and not name.startswith(("reuse.", "data.cache", "data.path", "logger.", "name", "run_dir"))
    }
    return _digest(json.dumps([settings, study.overrides, study.scale], sort_keys=True))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def train_run(run: Run, study: Study) -> Record:
    """Train or resume a run and return its record; the run prints to a log file next to its folder.

    A loss that is not finite is a result, not an error.

    Raises:
        RunError: If the run fails; the message says why.
        Interrupted: If this process was asked to stop.
    """
    try:
        return _train_and_record(run, study)
    except (UserError, RunError) as error:
        raise RunError(str(error)) from None  # RunError can be pickled


def _train_and_record(run: Run, study: Study) -> Record:
    config = run.config(study)
    key = make_run_key(config, study)
    folder = study.work / "runs" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "key": key,
        "arm": run.arm.key,
        "factor": run.arm.factor,
        "seed": run.seed,
        "source_rate": run.source_rate,
        "rate": run.rate,
        "share": run.share,
        "overrides": list(study.overrides),
        "scale": study.scale,
        "code": CODE_DIGEST[:12],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": _digest(fingerprint_processor(detect_machine(config.trainer))),
    }
    with (
        folder.with_suffix(".log").open("a") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            record |= _summarize(_train_or_resume(config, folder), folder)
        except NonFiniteError as error:
            record |= {"loss": None, "diverged": str(error)}
    shutil.rmtree(folder)
    return record


def _train_or_resume(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Train or resume the run and return its summary; a run that cannot be resumed starts again."""
    config = replace(config, run_dir=str(folder))
    if (folder / "resume" / "run.json").is_file() and not (folder / "summary.json").is_file():
        try:
            return run_plan(replace(config, resume=str(folder))).summary.to_json()
        except UserError as error:
            print(f"Cannot resume; starting again: {error}")
    shutil.rmtree(folder, ignore_errors=True)
    return run_plan(config).summary.to_json()


def _summarize(summary: dict[str, Any], folder: Path) -> Record:
    history = read_history(folder / "checkpoints" / "training_history.jsonl")
    last = summary["phases"][-1]
    return {
        "loss": last["val_loss"],
        "bits_per_byte": last["val_bits_per_byte"],
        "flops": summary["flops"],
        "tokens": summary["tokens"],
        "precision": summary["precision"],
        "phases": [_phase(phase, history) for phase in summary["phases"]],
        "boundaries": [
            {key: boundary[key] for key in ("to", "jump", "lossless", "seconds")}
            for boundary in summary["boundaries"]
            if boundary["growth"]
        ],
        "curve": downsample_curve([(row["flops"], row["loss"]) for row in history.rows]),
    }


def _phase(summary: dict[str, Any], history: History) -> dict[str, Any]:
    rates = [
        row["tokens_per_second"]
        for row in history.rows
        if row["phase"] == summary["name"] and row.get("tokens_per_second")
    ]
    return {
        "name": summary["name"],
        "parameters": summary["total_parameters"],
        "active": summary["active_parameters"],
        "steps": summary["steps"],
        "tokens": summary["tokens"],
        "flops": summary["flops"],
        # The median over the rows, so that other load on the machine does not count.
        "seconds": summary["tokens"] / median(rates) if rates else 0.0,
        "val_loss": summary["val_loss"],
        "initial_val_loss": summary["initial_val_loss"],
    }


def downsample_curve(points: Sequence[tuple[float, float]]) -> list[list[float]]:
    """Average consecutive points so that at most `CURVE` are left; losses that are not finite are left out."""
    group_size = max(1, math.ceil(len(points) / CURVE))
    groups = [points[i : i + group_size] for i in range(0, len(points), group_size)]
    means = []
    for group in groups:
        losses = [loss for _, loss in group if math.isfinite(loss)]
        if losses:
            flops = sum(f for f, _ in group) / len(group)
            means.append([float(f"{flops:.5g}"), float(f"{sum(losses) / len(losses):.5g}")])
    return means
