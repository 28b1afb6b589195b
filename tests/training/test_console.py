"""What a person reads."""

import io

from rich.console import Console
from tiny_run import tiny_run

from growlm.reporting.console import ConsoleReporter


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
        "Layer 2 from layer 1, output projections at zero",
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
    reporter.step_finished("dense", 1, 10, 5.0)
    reporter.close(failed=False)
    assert "1000/20000" in out.getvalue()
    assert "loss 5.0000" in out.getvalue()
