"""The names that dashboards rely on, and one step axis."""

from lightning.pytorch.loggers import CSVLogger
from tiny_run import tiny_config

from growlm.training import run, run_plan

KEYS = {
    "train/loss",
    "val/loss",
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
    "moe/dead_experts",
    "moe/load_entropy",
    "moe/max_load",
    "moe/aux_loss",
    "moe/tied_choices",
    "moe/expert_similarity",
    "moe/router_distance",
    "moe/router_grad_norm",
}


class Recorder(CSVLogger):
    """Keeps what it is told."""

    def __init__(self, folder):
        super().__init__(folder)
        self.calls = []

    def log_metrics(self, metrics, step=None):
        self.calls.append((step, dict(metrics)))


def test_every_key_is_logged_on_one_step_axis(tmp_path, monkeypatch):
    recorder = Recorder(tmp_path / "log")
    monkeypatch.setattr(run, "build_logger", lambda *_: recorder)
    run_plan(tiny_config(tmp_path / "run"))
    assert set().union(*(metrics for _, metrics in recorder.calls)) == KEYS
    steps = [step for step, _ in recorder.calls]
    assert steps == sorted(steps)
    assert steps[-1] == 16
    progress = {"progress/tokens", "progress/flops", "progress/time_s", "phase/index"}
    assert all(progress <= set(metrics) for _, metrics in recorder.calls)
    growth = [(s, m["phase/index"]) for s, m in recorder.calls if "growth/jump" in m]
    assert growth == [(4, 1), (8, 2), (12, 3)]


def test_csv_gets_the_same_numbers(tmp_path):
    import csv

    result = run_plan(tiny_config(tmp_path / "run", "logger=csv"))
    (file,) = result.run_dir.rglob("metrics.csv")
    with file.open() as opened:
        written = list(csv.DictReader(opened))
    assert set(written[0]) - {"step"} == KEYS
    losses = [float(row["train/loss"]) for row in written if row["train/loss"]]
    assert losses[-1] == result.summary.phases[-1].final_loss
