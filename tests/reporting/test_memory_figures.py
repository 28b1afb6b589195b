"""The planner's peak and the measured one have one baseline, and say so."""

import io
import json
from pathlib import Path

from rich.console import Console

from growlm.reporting.console.console_reporter import _format_peak_memory
from growlm.reporting.console.plan_table import print_plan

MEMORY = ("weights", "gradients", "optimizer", "activations", "growth_peak", "peak", "disk")
MODEL = {"n_layers": 2, "d_model": 16, "n_heads": 4, "n_kv_heads": 2, "head_dim": 4, "d_ff": 32}
PHASE = {
    "name": "dense", "total_parameters": 10**6, "active_parameters": 10**6, "steps": 3, "tokens": 9,
    "flops": 1e9, "model": MODEL, "fits": True, "memory": dict.fromkeys(MEMORY, 73_000_000),
    "seconds": {"step": 1.0, "training": 3.0, "validation": 0.0, "growth": 0.0},
}  # fmt: skip


def test_the_plan_says_from_where_it_counts():
    out = io.StringIO()
    print_plan(Console(file=out, width=100), {"phases": [PHASE], "memory_limit": 10**9})
    said = " ".join(out.getvalue().split())
    assert "1 GB of memory are available; this plan needs 73 MB" in said
    assert "(above what the process holds at its start)" in said
    shape = "First model: 2 layers, 16 wide; 4 heads of 4 channels (2 for keys and values); d_ff 32"
    assert shape in out.getvalue()


def test_the_run_counts_from_there_too():
    said = _format_peak_memory(520_000_000, 440_000_000)
    assert said == "Peak memory 80 MB above the start of the run (520 MB in all)"
    assert _format_peak_memory(520_000_000, 0) == "Peak memory of the process 520 MB"


def test_a_run_knows_what_it_held_at_its_start(tmp_path, capsys):
    from tests.training.tiny_run import tiny_run

    run = tiny_run(tmp_path / "run", "~phases.moe", "~phases.wide", "~phases.deep")
    summary = json.loads((Path(run.run_dir) / "summary.json").read_text())
    peak, start = summary["phases"][0]["peak_memory_bytes"], summary["initial_memory_bytes"]
    assert 0 < start < peak
    assert _format_peak_memory(peak, start) in capsys.readouterr().out
