"""One run of the study: its config, and the record of it."""

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
from growth_study.arms import Arm, arm_named, axis_named
from growth_study.lengths import scaled, trained_for
from growth_study.record_file import Record

CURVE = 40
"""Points of a record's curve at most."""


@dataclass(frozen=True)
class Study:
    """What all runs have in common."""

    overrides: tuple[str, ...]
    """Of growlm.train, besides the arms' own."""
    scale: float
    """Of all lengths."""
    work: Path
    """Where runs leave their files while they train."""
    states: Path
    """Where the states are that they share."""


@dataclass(frozen=True)
class Run:
    """An arm with one seed, one learning rate and one length."""

    arm: Arm
    seed: int
    source_rate: float
    rate: float
    """After the first growth; of a baseline, all the way."""
    share: float

    @staticmethod
    def of(record: Record) -> Run | None:
        """The run that a record is of; None if no arm is trained like that."""
        arm = arm_named(record["arm"])
        if arm is None or record["share"] not in arm.shares:
            return None
        return Run(arm, *(record[name] for name in ("seed", "source_rate", "rate", "share")))

    @property
    def title(self) -> str:
        """In a line."""
        return f"{self.arm.key}, seed {self.seed}, rate {self.rate:g}, {self.share:.0%}"

    def config(self, study: Study) -> RunConfig:
        """The config; nothing is written.

        Raises:
            UserError: If an override of the study's cannot be.
        """
        config = _composed(
            *axis_named(self.arm.axis).overrides, *self.arm.overrides,
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
        config = scaled(replace(config, phases=phases), study.scale, self.arm.grows_at)
        config = apply_baseline(config, lambda: None)
        vocabulary = load_tokenizer(config.tokenizer.name, config.tokenizer.path).vocab_size
        return trained_for(config, make_plan(config, vocabulary), self.share, self.arm.shares)


@lru_cache
def _composed(*overrides: str) -> RunConfig:
    return load_config(*overrides)


def key_of(config: RunConfig, study: Study) -> str:
    """Names what a config trains: everything that is not as the schema has it, places apart; and the study."""
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


def carry_out(run: Run, study: Study) -> Record:
    """Train, or go on training; what the run prints goes to a file beside its folder.

    Raises:
        RunError: If it cannot be done; it says why. A loss that is not finite is a result.
        Interrupted: If this process was asked to stop.
    """
    try:
        return _carried_out(run, study)
    except (UserError, RunError) as error:
        raise RunError(str(error)) from None  # which can be sent to another process


def _carried_out(run: Run, study: Study) -> Record:
    config = run.config(study)
    key = key_of(config, study)
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
            record |= _findings(_trained(config, folder), folder)
        except NonFiniteError as error:
            record |= {"loss": None, "diverged": str(error)}
    shutil.rmtree(folder)
    return record


def _trained(config: RunConfig, folder: Path) -> dict[str, Any]:
    """The summary of the run; one that was stopped goes on, or begins anew where it cannot."""
    config = replace(config, run_dir=str(folder))
    if (folder / "resume" / "run.json").is_file() and not (folder / "summary.json").is_file():
        try:
            return run_plan(replace(config, resume=str(folder))).summary.to_json()
        except UserError as error:
            print(f"begins anew: {error}")
    shutil.rmtree(folder, ignore_errors=True)
    return run_plan(config).summary.to_json()


def _findings(summary: dict[str, Any], folder: Path) -> Record:
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
        "curve": thinned([(row["flops"], row["loss"]) for row in history.rows]),
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
        # The median over the rows: what else the machine did meanwhile does not count.
        "seconds": summary["tokens"] / median(rates) if rates else 0.0,
        "val_loss": summary["val_loss"],
        "initial_val_loss": summary["initial_val_loss"],
    }


def thinned(points: Sequence[tuple[float, float]]) -> list[list[float]]:
    """Means over as many points in a row as leave at most `CURVE`; what is not finite stays out."""
    each = max(1, math.ceil(len(points) / CURVE))
    groups = [points[i : i + each] for i in range(0, len(points), each)]
    means = []
    for group in groups:
        losses = [loss for _, loss in group if math.isfinite(loss)]
        if losses:
            flops = sum(f for f, _ in group) / len(group)
            means.append([float(f"{flops:.5g}"), float(f"{sum(losses) / len(losses):.5g}")])
    return means
