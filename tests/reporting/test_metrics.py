"""The names that dashboards rely on, one step axis, and the same numbers for every logger."""

import csv
import json
import math

import pytest
from lightning.pytorch.loggers import CSVLogger

from growlm.reporting.loggers.metric_logger import MetricLogger
from growlm.training import plan_runner as run
from growlm.training import run_plan
from growlm.training.callbacks.growth_callback import GrowthError
from tests.training.tiny_run import rows, tiny_config

BOUNDARIES = ("dense-moe", "moe-wide", "wide-deep")
KEYS = {
    "train/loss",
    "val/loss",
    "val/bits_per_byte",
    "optim/lr",
    "optim/grad_norm",
    "perf/tokens_per_second",
    "perf/mfu",
    "progress/tokens",
    "progress/flops",
    "progress/time_s",
    "phase/index",
    "growth/loss_before",
    "growth/loss_after",
    "growth/jump",
    "growth/max_logit_difference",
    *(f"growth/on_loss_curve/{boundary}" for boundary in BOUNDARIES),
    *(f"loss_by_phase/{phase}" for phase in ("dense", "moe", "wide", "deep")),
    "moe/dead_experts",
    "moe/load_entropy",
    "moe/max_load",
    "moe/aux_loss",
    "moe/tied_choices",
    "moe/expert_similarity",
    "moe/router_distance",
    "moe/router_grad_norm",
}
LOADS = {f"moe/load/layer_{layer:02d}/expert_{e}" for layer in range(3) for e in range(8)}
FIELDS = {
    "train/loss": "loss",
    "optim/lr": "lr",
    "optim/grad_norm": "grad_norm",
    "perf/tokens_per_second": "tokens_per_second",
    "progress/tokens": "tokens",
    "progress/flops": "flops",
    "progress/time_s": "time_s",
    "phase/index": "phase_index",
    "moe/load_entropy": "load_entropy",
}


class Recorder(CSVLogger):
    """Keeps what it is told."""

    def __init__(self, folder):
        super().__init__(folder)
        self.calls = []

    def log_metrics(self, metrics, step=None):
        self.calls.append((step, dict(metrics)))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run's folder, and what its logger was told."""
    folder = tmp_path_factory.mktemp("recorded")
    recorder = Recorder(folder / "log")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "build_loggers", lambda *_: [recorder])
        result = run_plan(tiny_config(folder / "run"))
    return result, recorder.calls


def expected(row):
    """The numbers of a row of the history, as a logger without histograms has them."""
    metrics = {key: row[field] for key, field in FIELDS.items() if field in row}
    metrics[f"loss_by_phase/{row['phase']}"] = row["loss"]
    for layer, shares in enumerate(row.get("expert_loads", [])):
        for expert, share in enumerate(shares):
            metrics[f"moe/load/layer_{layer:02d}/expert_{expert}"] = share
    return metrics


def test_every_key_is_logged_on_one_step_axis(recorded):
    _, calls = recorded
    assert set().union(*(metrics for _, metrics in calls)) == KEYS | LOADS
    steps = [step for step, _ in calls]
    assert steps == sorted(steps)
    assert steps[-1] == 16
    progress = {"progress/tokens", "progress/flops", "progress/time_s", "phase/index"}
    assert all(progress <= set(metrics) for _, metrics in calls)
    growth = [(s, m["phase/index"]) for s, m in calls if "growth/jump" in m]
    assert growth == [(4, 1), (8, 2), (12, 3)]


def test_a_growth_is_a_point_of_the_loss_curve(recorded):
    _, calls = recorded
    curve = {step: metrics["train/loss"] for step, metrics in calls if "train/loss" in metrics}
    for boundary, step in zip(BOUNDARIES, (4, 8, 12), strict=True):
        key = f"growth/on_loss_curve/{boundary}"
        assert [(s, m[key]) for s, m in calls if key in m] == [(step, curve[step])]


def test_a_phase_s_losses_are_a_series_of_its_name(recorded):
    result, calls = recorded
    for phase in ("dense", "moe", "wide", "deep"):
        series = [m[f"loss_by_phase/{phase}"] for _, m in calls if f"loss_by_phase/{phase}" in m]
        assert series == [row["loss"] for row in rows(result.run_dir) if row["phase"] == phase]


def test_csv_gets_the_same_numbers(tmp_path):
    run_dir = run_plan(tiny_config(tmp_path / "run", "logger=csv")).run_dir
    written = csv_rows(run_dir)
    assert set(written[0]) - {"step"} == KEYS | LOADS
    losses = [row for row in written if row["train/loss"]]
    for cells, row in zip(losses, rows(run_dir), strict=True):
        assert int(cells["step"]) == row["global_step"]
        for key, value in expected(row).items():
            assert float(cells[key]) == value, key
    jumps = [float(row["growth/jump"]) for row in written if row["growth/jump"]]
    assert jumps == [b["jump"] for b in json.loads((run_dir / "boundaries.json").read_text())]


def test_tensorboard_gets_the_same_numbers_and_the_tables_as_text(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator

    run_dir = run_plan(tiny_config(tmp_path / "run", "logger=tensorboard")).run_dir
    events = EventAccumulator(str(run_dir / "tensorboard"), {TENSORS: 0}).Reload()
    assert set(events.Tags()["scalars"]) == KEYS | LOADS
    for key in LOADS | set(FIELDS) | {"loss_by_phase/moe"}:
        written = {(event.step, event.value) for event in events.Scalars(key)}
        for row in rows(run_dir):
            if key in (numbers := expected(row)):
                single = [v for s, v in written if s == row["global_step"]]
                assert any(math.isclose(v, numbers[key], rel_tol=1e-6) for v in single), key
    texts = {
        key: [t.tensor_proto.string_val[0].decode() for t in events.Tensors(key)]
        for key in ("growth/boundaries/text_summary", "samples/text_summary")
    }
    boundaries = json.loads((run_dir / "boundaries.json").read_text())
    *_, last = texts["growth/boundaries/text_summary"]
    assert len(last.splitlines()) == 2 + len(boundaries)
    assert all(f"| {b['from']} | {b['to']} |" in last for b in boundaries)
    *_, last = texts["samples/text_summary"]
    assert [line.split(" | ")[0] for line in last.splitlines()[2:]] == [
        f"| {phase}" for phase in ("dense", "moe", "wide", "deep")
    ]


def test_a_growth_that_fails_is_logged(tmp_path):
    overrides = ("growth.noise_std=0", "verification.require_symmetry_breaking=true")
    with pytest.raises(GrowthError):
        run_plan(tiny_config(tmp_path / "run", "logger=csv", "growth.scale_factor=2", *overrides))
    grown = [row for row in csv_rows(tmp_path / "run") if row["growth/jump"]]
    assert [int(row["step"]) for row in grown] == [4, 8]


def test_replayed_history_is_what_was_logged(recorded, tmp_path):
    result, calls = recorded
    logger = Recorder(tmp_path)
    replay(result, MetricLogger(logger), tell=True)
    assert logger.calls == calls


@pytest.mark.parametrize("seen", ["half", "all"])
def test_untold_history_only_moves_the_position(recorded, tmp_path, seen):
    result, _ = recorded
    heard, unheard = MetricLogger(Recorder(tmp_path)), MetricLogger(Recorder(tmp_path))
    for logger, tell in ((heard, True), (unheard, False)):
        replay(result, logger, tell, 0.5 if seen == "half" else 1.0)
    assert unheard.adapter.logger.calls == []
    assert unheard.num_entries == heard.num_entries > 8
    assert unheard.last_row == heard.last_row
    # What comes next is logged alike.
    for logger in (heard, unheard):
        logger.boundary_finished(result.summary.boundaries[0])
    assert unheard.adapter.logger.calls == heard.adapter.logger.calls[-1:]


def replay(result, logger, tell, share=1.0):
    lines = (result.run_dir / "checkpoints" / "training_history.jsonl").read_text().splitlines()
    part = [json.loads(line) for line in lines[: int(share * len(lines))]]
    logger.replay(part, result.summary.boundaries, should_log=tell)


def csv_rows(run_dir):
    (file,) = run_dir.rglob("metrics.csv")
    with file.open() as opened:
        return list(csv.DictReader(opened))
