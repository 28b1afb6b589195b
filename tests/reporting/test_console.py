"""What a person reads."""

import io
import re

from rich.console import Console

from growlm.reporting.console.console_reporter import ConsoleReporter
from tests.training.tiny_run import tiny_run

PHASE = {
    "name": "dense",
    "steps": 10,
    "seconds": {"step": 1.0, "training": 10.0, "validation": 0.0, "growth": 0.0},
}


def test_plain_output_fits_100_columns_and_says_what_matters(tmp_path, capsys):
    tiny_run(tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 100
    for expected in (
        "Phase 1 of 4: dense",
        "Steps 4  |  LR 0.002  |  Device",
        "top-2 of 8 experts",
        "experts idle",
        "Efficiency",
        "moe → wide: growing",
        "Width 16 → 24, heads 4 → 6, hidden units 32 → 48",
        "Layer 2 from layer 1, output projections set to zero",
        "RoPE integrity",
        "router scaling",
        "symmetry breaking",
        "functional identity",
        "Boundary summary",
        "Samples",
    ):
        assert expected in text


def test_a_terminal_gets_a_bar():
    out = io.StringIO()
    reporter = ConsoleReporter(Console(file=out, force_terminal=True, width=100))
    reporter.task_progress("reading documents", 1000, 20000)
    reporter.task_progress("reading documents", 20000, 20000)
    reporter.progress_display.set_plan([PHASE])
    reporter.step_finished("dense", 1, 10, 5.0)
    reporter.step_finished("dense", 2, 10, None)
    reporter.validation_finished({"phase": "dense", "step": 2, "val_loss": 4.0})
    reporter.close(failed=False)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert "1000/20000" in text
    assert "loss 5.0000" in text
    assert "plan" in text
    assert "20 %, " in text
    assert "s left" in text
    assert "validation loss 4.0000" in text


def test_elsewhere_it_is_quiet():
    out = io.StringIO()
    reporter = ConsoleReporter(Console(file=out, width=100))
    reporter.progress_display.set_plan([{**PHASE, "steps": 1000}])
    for step in range(1, 1001):
        row = {"phase": "dense", "step": step, "loss": 1.0, "lr": 1e-3, "tokens_per_second": 1e3}
        reporter.row_logged(row)
        reporter.step_finished("dense", step, 1000, 1.0)
    lines = out.getvalue().splitlines()
    assert 2 <= len(lines) <= 5  # the first, the last, and one each ten seconds
    assert "step     1" in lines[0]
    assert "left" in lines[0]
    assert "step  1000" in lines[-1]
    assert "100 %" in lines[-1]
