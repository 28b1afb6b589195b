"""An offline W&B run, read back from its file."""

import json
import os
import shutil
from itertools import pairwise

import pytest
import wandb

from growlm.reporting.loggers.logger_adapters import LogEntry
from growlm.reporting.loggers.logger_tables import LoggerTable
from growlm.reporting.loggers.wandb_adapter import WandbAdapter, make_expert_load_histogram
from growlm.reporting.loggers.wandb_files import mend_offline_parts
from growlm.training import Interrupted, run_plan
from growlm.training.callbacks.growth_callback import GrowthError
from tests.commands.wandb_file import (
    records_of,
    wandb_file,
    wandb_records,
    wandb_rows,
    wandb_run,
    wandb_table,
)
from tests.reporting.test_metrics import KEYS
from tests.reporting.wandb_server import sync, wandb_server
from tests.training.stopping import SignalAt
from tests.training.tiny_run import rows, tiny_config

OFFLINE = ("logger=wandb", "logger.mode=offline")
OF_THE_ENVIRONMENT = {
    "WANDB_TAGS": "theirs,mine",
    "WANDB_NOTES": "a note",
    "WANDB_JOB_TYPE": "train",
    "WANDB_RUN_GROUP": "other",  # logger.group wins
}
AXES = ("trainer/global_step", "progress/tokens", "progress/flops", "progress/time_s")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run with everything in it, system metrics too: they come every 15 s if not told otherwise."""
    folder = tmp_path_factory.mktemp("wandb") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB__STATS_SAMPLING_INTERVAL", "0.5")
        for name, value in OF_THE_ENVIRONMENT.items():
            patch.setenv(name, value)
        run_plan(tiny_config(folder, *OFFLINE, "logger.group=some_sweep", "logger.tags=[mine]"))
    return folder


def test_every_key_is_there_on_four_axes_that_never_go_back(run_dir):
    logged = wandb_rows(wandb_file(run_dir))
    assert set().union(*logged) >= KEYS
    for axis in AXES:
        values = [row[axis] for row in logged]
        assert all(before <= after for before, after in pairwise(values)), axis
        of_losses = [row[axis] for row in logged if "train/loss" in row]
        assert all(before < after for before, after in pairwise(of_losses)), axis
    assert [row["_step"] for row in logged] == list(range(len(logged)))
    of_history = [row["loss"] for row in rows(run_dir)]
    assert [row["train/loss"] for row in logged if "train/loss" in row] == of_history


def test_any_axis_can_be_x_and_the_step_is_the_default(run_dir):
    metrics = {m.name or m.glob_name: m for m in records_of(wandb_file(run_dir), "metric")}
    assert {*AXES, "*"} <= metrics.keys()
    assert metrics["trainer/global_step"].step_metric == ""
    assert {m.step_metric for name, m in metrics.items() if name != AXES[0]} == {AXES[0]}
    for loss in ("train/loss", "val/loss"):
        assert metrics[loss].summary.min
        assert metrics[loss].summary.last
    hidden = {name for name, metric in metrics.items() if metric.options.hidden}
    patterns = {"loss_by_phase/*", "growth/on_loss_curve/*"}
    assert patterns <= hidden  # older releases of wandb list what they match, too
    assert all(name.startswith(tuple(p[:-1] for p in patterns)) for name in hidden)


def test_the_boundary_table_is_boundaries_json(run_dir):
    file = wandb_file(run_dir)
    with_table = [row for row in wandb_rows(file) if "growth/boundaries.path" in row]
    boundaries = json.loads((run_dir / "boundaries.json").read_text())
    assert [row["trainer/global_step"] for row in with_table] == [4, 8, 12]
    for number, row in enumerate(with_table, 1):
        columns, data = wandb_table(file, row, "growth/boundaries")
        for line, boundary in zip(data, boundaries[:number], strict=True):
            cells = dict(zip(columns, line, strict=True))
            for key in ("from", "to", "loss_before", "loss_after", "jump", "passed"):
                assert cells[key] == boundary[key]
            checks = dict(check.split() for check in cells["checks"].split(", "))
            assert checks == {name: c["status"] for name, c in boundary["checks"].items()}


def test_the_samples_are_a_table(run_dir):
    file = wandb_file(run_dir)
    with_table = [row for row in wandb_rows(file) if "samples.path" in row]
    summary = json.loads((run_dir / "summary.json").read_text())
    samples = [[phase["name"], phase["sample"]] for phase in summary["phases"]]
    assert len(with_table) == 4
    assert wandb_table(file, with_table[-1], "samples") == (["phase", "text"], samples)


def test_router_loads_are_histograms_with_a_bin_for_each_expert(run_dir):
    logged = [row for row in wandb_rows(wandb_file(run_dir)) if "train/loss" in row]
    for row, of_history in zip(logged, rows(run_dir), strict=True):
        loads = of_history.get("expert_loads", [])
        assert sum(key.startswith("moe/load/") for key in row) == 3 * len(loads)
        for layer, shares in enumerate(loads):
            histogram = {p: row[f"moe/load/layer_{layer:02d}.{p}"] for p in ("values", "bins")}
            assert histogram == {"values": shares, "bins": list(range(len(shares) + 1))}
            assert row[f"moe/load/layer_{layer:02d}._type"] == "histogram"


def test_more_experts_than_bins_share_them():
    loads = [1 / 1200] * 1200
    histogram = make_expert_load_histogram(loads)
    assert len(histogram.histogram) == 400 <= wandb.Histogram.MAX_LENGTH
    assert sum(histogram.histogram) == pytest.approx(1)
    assert (histogram.bins[0], histogram.bins[1], histogram.bins[-1]) == (0, 3, 1200)


def test_a_network_that_fails_costs_a_table_and_nothing_else():
    class Run:
        """W&B asks its server about a table before it takes the row."""

        def __init__(self):
            self.rows = []

        def define_metric(self, *arguments, **settings):
            pass

        def log(self, values, step):
            if any(isinstance(value, wandb.Table) for value in values.values()):
                raise wandb.errors.CommError("no route to W&B")
            self.rows.append((step, values))

    run = Run()
    table = LoggerTable("samples", ["phase", "text"], [["dense", "Once"]])
    WandbAdapter(run).log(LogEntry(3, 40, {"phase/index": 1}, {"val/loss": 2.0}, tables=(table,)))
    assert run.rows == [(3, {"trainer/global_step": 40, "phase/index": 1, "val/loss": 2.0})]


@pytest.mark.slow
def test_an_online_run_goes_on(tmp_path):
    run_dir = tmp_path / "run"
    with wandb_server() as (environment, received), pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        online = ("logger=wandb", "logger.mode=online")
        with pytest.raises(Interrupted):
            run_plan(tiny_config(run_dir, *online), [SignalAt(8)])
        before = len(received.history)
        run_plan(tiny_config(run_dir, *online, f"resume='{run_dir}'"))
        wandb.teardown()
    assert 0 < before < len(received.history)
    assert [row["_step"] for row in received.history] == list(range(len(received.history)))
    assert len({run["name"] for run in received.runs}) == 1


def test_name_group_tags_and_config(run_dir):
    run = wandb_run(run_dir)
    assert (run.display_name, run.run_group) == ("run", "some_sweep")
    assert list(run.tags) == ["quickstart", "mine", "theirs"]
    assert (run.notes, run.job_type) == ("a note", "train")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    dials = {"scale_factor": 1.5, "extra_layers": 1, "noise_std": None}
    assert config["growth"] == {**dials, "new_channels": "auto", "new_blocks": "fresh"}
    assert config["phases"]["wide"]["grow"][0]["widen"]["scale_factor"] == 1.5
    assert config["resume"] is None


def test_the_summary_has_every_phase_and_boundary(run_dir):
    figures = {}
    for record in records_of(wandb_file(run_dir), "summary"):
        for item in record.update:
            figures[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    summary = json.loads((run_dir / "summary.json").read_text())
    for phase in summary["phases"]:
        for key in ("val_loss", "active_parameters", "flops"):
            assert figures[f"phase/{phase['name']}/{key}"] == phase[key]
    for boundary in summary["boundaries"]:
        assert figures[f"growth/{boundary['from']}-{boundary['to']}/jump"] == boundary["jump"]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 1])
def test_a_part_that_a_kill_cut_ends_with_a_whole_record(share, run_dir, tmp_path):
    shutil.copytree(run_dir / "wandb", tmp_path / "wandb", symlinks=True)
    whole, cut = wandb_file(run_dir), wandb_file(tmp_path)
    run_id = cut.stem.removeprefix("run-")
    size = int(share * whole.stat().st_size)
    os.truncate(cut, size)
    count = mend_offline_parts(tmp_path / "wandb", run_id, tmp_path, num_entries=1000)
    assert wandb_rows(cut) == wandb_rows(whole)[:count]
    records = [record.SerializeToString() for record in wandb_records(whole)]
    assert [record.SerializeToString() for record in wandb_records(cut)] == records[
        : len(list(wandb_records(cut)))
    ]
    assert size - 5000 < cut.stat().st_size <= size
    again = mend_offline_parts(tmp_path / "wandb", run_id, tmp_path, num_entries=3)
    assert (again, len(wandb_rows(cut))) == (3, 3)


def test_a_part_without_its_run_is_removed_and_one_that_was_uploaded_is_not(run_dir, tmp_path):
    shutil.copytree(run_dir / "wandb", tmp_path / "wandb", symlinks=True)
    cut = wandb_file(tmp_path)
    run_id = cut.stem.removeprefix("run-")
    os.truncate(cut, 7)
    marker = cut.with_name(f"{cut.name}.synced")
    marker.touch()
    for exists in (True, False):
        assert mend_offline_parts(tmp_path / "wandb", run_id, tmp_path, 1000) == 0
        assert cut.parent.exists() == exists
        marker.unlink(missing_ok=True)


def test_wandb_s_own_reader_finds_the_same(run_dir, tmp_path):
    file = wandb_file(run_dir)
    received = sync(shutil.copytree(file.parent, tmp_path / file.parent.name))
    assert [flat(row) for row in received.history] == wandb_rows(file)
    assert len(received.lines["wandb-events.jsonl"]) == len(records_of(file, "stats")) > 0
    *_, last = (row for row in received.history if "growth/boundaries" in row)
    table = json.loads(received.files[last["growth/boundaries"]["path"]])
    assert (table["columns"], table["data"]) == wandb_table(file, flat(last), "growth/boundaries")
    run, *_ = received.runs
    assert (run["groupName"], run["tags"]) == ("some_sweep", ["quickstart", "mine", "theirs"])
    config = json.loads(run["config"])
    assert config["growth"]["value"]["scale_factor"] == 1.5


def flat(row):
    """Nested keys joined by dots."""
    pairs = {}
    for key, value in row.items():
        inner = value.items() if isinstance(value, dict) else [(None, value)]
        pairs |= {key if name is None else f"{key}.{name}": v for name, v in inner}
    return pairs


def test_system_metrics_are_there(run_dir):
    stats = [item.key for r in records_of(wandb_file(run_dir), "stats") for item in r.item]
    assert {"cpu", "memory_percent"} <= set(stats)


def test_a_growth_that_fails_is_in_the_file(tmp_path):
    overrides = ("growth.noise_std=0", "growth.scale_factor=2")
    required = "verification.require_symmetry_breaking=true"
    with pytest.raises(GrowthError):
        run_plan(tiny_config(tmp_path / "run", *OFFLINE, *overrides, required))
    file = wandb_file(tmp_path / "run")
    *_, row = wandb_rows(file)
    columns, data = wandb_table(file, row, "growth/boundaries")
    assert [dict(zip(columns, line, strict=True))["passed"] for line in data] == [True, False]
    (ended,) = records_of(file, "exit")
    assert ended.exit_code == 1
