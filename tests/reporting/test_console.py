"""What a person reads while a run goes on."""

import io
import re
import time
from itertools import pairwise

import pytest
from rich.console import Console
from rich.text import Text

from growlm.reporting.console.console_layout import print_heading, print_table, wrap_text
from growlm.reporting.console.console_reporter import ConsoleReporter
from growlm.reporting.console.plain_console import make_stdout_console
from growlm.reporting.records import BoundaryRecord
from growlm.verification.check_report import CheckReport, GrowthReport, Status
from tests.training.tiny_run import tiny_run

PHASE = {
    "name": "dense",
    "steps": 10,
    "seconds": {"step": 1.0, "training": 10.0, "validation": 0.0, "growth": 0.0},
}
ROW = {"phase": "dense", "loss": 1.0, "lr": 1e-3, "tokens_per_second": 1e3}
CHECK_TITLES = ("RoPE integrity", "router scaling", "symmetry breaking", "functional identity")


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def run_output(tmp_path_factory):
    """The lines of a run that is redirected, at 80 columns."""
    out = io.StringIO()
    folder = tmp_path_factory.mktemp("console") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        patch.setattr("sys.stdout", out)
        tiny_run(folder, "schedule.warmup_steps=4")
    lines = out.getvalue().splitlines()
    return [line for line in lines if str(folder) not in line and "stories:" not in line]


def plain(out):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())


def make_boundary(**statuses):
    checks = {
        name: CheckReport(name, Status(status), f"what {name} measured")
        for name, status in statuses.items()
    }
    report = GrowthReport(checks, 3.25, 3.25, 0.0, 1e-4, True)
    return BoundaryRecord("dense", "moe", ["8 experts"], [], report, {}, "carry", [], 0.25)


def print_boundary(boundary, verbose=False, **console):
    out = io.StringIO()
    reporter = ConsoleReporter(Console(file=out, width=100, **console), verbose)
    reporter.growth_started("dense", "moe")
    reporter.boundary_finished(boundary)
    reporter.close(failed=False)
    return out


def test_a_redirected_run_fits_80_columns_and_says_what_matters(run_output):
    assert [line for line in run_output if len(line) > 80] == []
    assert not any(line != line.rstrip() or "…" in line for line in run_output)
    text = "\n".join(run_output)
    for expected in (
        "of memory are available; this plan needs ",
        "Phase 1 of 4: dense",
        "Steps 4  |  LR 0.002  |  Device",
        "top-2 of 8 experts",
        "experts idle",
        "Efficiency",
        "moe → wide: growing",
        "Width 16 → 24, heads 4 → 6, hidden units 32 → 48",
        "Layer 2 from layer 1, output projections set to zero",
        "4 checks passed, jump 0 (probe loss ",
        "Boundary summary",
        "Samples",
    ):
        assert expected in text
    assert "e+00" not in text
    assert not any(title in text for title in CHECK_TITLES)


def test_passing_checks_take_one_line():
    boundary = make_boundary(
        rope="passed", router="not_applicable", symmetry="passed", functional="passed"
    )
    text = plain(print_boundary(boundary))
    assert text.splitlines()[-1] == ("  3 checks passed, jump 0 (probe loss 3.250000 → 3.250000)")
    assert "measured" not in text
    assert "what router measured" in plain(print_boundary(boundary, verbose=True))


@pytest.mark.parametrize(
    ("status", "verdict", "color", "shown"),
    [
        ("passed", "2 checks passed, jump", "1;32", ()),
        ("finding", "1 check passed, 1 finding, jump", "1;33", ("symmetry",)),
        ("failed", "1 check passed, 1 FAILED, jump", "1;31", ("symmetry", "rope")),
    ],
)
def test_the_verdict_has_a_color_and_details_where_they_are_needed(status, verdict, color, shown):
    boundary = make_boundary(rope="passed", symmetry=status)
    out = print_boundary(boundary, force_terminal=True, color_system="standard")
    assert verdict in plain(out)
    (colored,) = re.findall(rf"\x1b\[{color}m([^\x1b]*)\x1b\[0m", out.getvalue())[-1:]
    assert colored in verdict  # and not the rest of the line
    for name in ("rope", "symmetry"):
        assert (f"what {name} measured" in plain(out)) is (name in shown)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_terminal_gets_bars_whose_texts_are_not_cut(width):
    out = io.StringIO()
    reporter = ConsoleReporter(Console(file=out, force_terminal=True, width=width))
    name = "medium_mixture_of_experts"
    reporter.task_progress("reading documents", 1000, 20000)
    reporter.task_progress("reading documents", 20000, 20000)
    reporter.progress_display.set_plan([{**PHASE, "name": name}])
    reporter.step_finished(name, 1, 10, 5.0)
    reporter.step_finished(name, 2, 10, None)
    reporter.validation_finished({"phase": name, "step": 2, "val_loss": 4.0})
    reporter.close(failed=False)
    text = plain(out)
    for expected in (
        *("1,000 of 20,000", f"{name} ", "2 of 10, loss 5.0000", "plan", "20 %, ", "s left"),
        "validation loss 4.0000",
    ):
        assert expected in text
    assert "…" not in text
    assert "..." not in text


def test_elsewhere_it_is_quiet():
    out = io.StringIO()
    clock = Clock()
    reporter = ConsoleReporter(Console(file=out, width=100), clock=clock)
    reporter.progress_display.set_plan([{**PHASE, "steps": 1000}])
    for step in range(1, 1001):
        clock.now += 0.03
        reporter.row_logged({**ROW, "step": step})
        reporter.step_finished("dense", step, 1000, 1.0)
    reporter.close(failed=False)
    lines = out.getvalue().splitlines()
    assert [int(line.split()[2].replace(",", "")) for line in lines] == [1, 335, 669, 1000]
    assert "left" in lines[0]
    assert "100 %" in lines[-1]


@pytest.mark.parametrize("log_every", [1, 7, 1000])
@pytest.mark.parametrize("step_seconds", [0.5, 4.0, 9.0, 25.0])
def test_a_redirected_run_is_never_silent_for_more_than_10_seconds(log_every, step_seconds):
    """Phases of 4 steps, shorter than a line is due or than a row is logged, and steps that take longer."""
    clock = Clock()
    times = []

    class Out(io.StringIO):
        def write(self, text):
            times.append(clock.now)
            return super().write(text)

    out = Out()
    reporter = ConsoleReporter(Console(file=out, width=100), clock=clock)
    display = reporter.progress_display
    names = [f"phase_{number}" for number in range(5)]
    phases = [{**PHASE, "name": name, "steps": 4} for name in names]

    def wait(seconds):
        """Let time pass, as the thread that watches sees it."""
        for _ in range(round(seconds / 0.5)):
            clock.now += 0.5
            display.heartbeat.print_if_due()

    for phase in phases:
        reporter.growth_started("before", phase["name"])
        wait(3)
        display.begin(f"starting {phase['name']}")
        for step in range(1, 5):
            wait(step_seconds)
            if step in (1, 4) or step % log_every == 0:
                reporter.row_logged({**ROW, "phase": phase["name"], "step": step})
            reporter.step_finished(phase["name"], step, 4, 1.0)
        reporter.task_progress("writing resume state", 0, None)
        wait(12)
        reporter.task_progress("writing resume state", 1, 1, "done")
        wait(15)
    reporter.close(failed=False)
    gaps = [after - before for before, after in pairwise(times)]
    assert max(gaps) <= 10.0
    lines = out.getvalue().splitlines()
    assert "  writing resume state: not finished yet, 10 s so far" in lines
    assert not any("writing" in line and "12 s" in line for line in lines)
    if step_seconds == 25.0:
        assert "phase_0 step 1 of 4, loss 1.0000, finished 10 s ago" in out.getvalue()


def test_steps_without_a_row_are_told_too():
    out = io.StringIO()
    clock = Clock()
    reporter = ConsoleReporter(Console(file=out, width=100), clock=clock)
    reporter.row_logged({**ROW, "step": 1})
    reporter.step_finished("dense", 1, 2000, 5.5)
    for step in range(2, 12):
        clock.now += 2.0
        reporter.step_finished("dense", step, 2000, None)
    reporter.close(failed=False)
    assert out.getvalue().splitlines()[1:] == [
        "  dense step 6 of 2,000, loss 5.5000 at step 1",
        "  dense step 11 of 2,000, loss 5.5000 at step 1",
    ]


def test_a_thread_watches_while_a_run_goes_on(monkeypatch):
    monkeypatch.setattr("growlm.reporting.console.heartbeat.MAX_SILENCE_SECONDS", 0.05)
    out = io.StringIO()
    reporter = ConsoleReporter(Console(file=out, width=100))
    reporter.progress_display.watch()
    reporter.growth_started("dense", "moe")
    deadline = time.monotonic() + 5
    while "growing into moe, " not in out.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    reporter.close(failed=False)
    length = len(out.getvalue())
    assert "growing into moe, " in out.getvalue()
    time.sleep(0.1)
    assert len(out.getvalue()) == length


@pytest.mark.parametrize("width", [40, 80, 100])
def test_a_table_splits_where_it_does_not_fit(width):
    out = io.StringIO()
    titles = ["phase", *(f"column {number}" for number in range(9))]
    names = ["medium_moe", "dense"]
    print_table(
        Console(file=out, width=width), titles, [[name, *["123.45 GB"] * 9] for name in names]
    )
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert out.getvalue().count("123.45 GB") == 18
    parts = sum(line.startswith("phase") for line in lines)
    assert parts == {40: 5, 80: 2, 100: 2}[width]
    assert all(sum(line.startswith(name) for line in lines) == parts for name in names)


def test_text_is_wrapped_between_words_and_keeps_its_style():
    text = Text("a long/path/that/does/not/fit then words\n\nand more", style="red")
    lines = wrap_text(text, 12)
    assert [line.plain for line in lines] == [
        *("a", "long/path/that/does/not/fit", "then words", "", "and more")
    ]
    assert all(line.style == "red" for line in lines)
    assert [line.plain for line in wrap_text("×× ×× ××", 5)] == ["×× ××", "××"]


def test_optional_columns_go_first_and_long_names_get_their_own_lines():
    out = io.StringIO()
    console = Console(file=out, width=40)
    print_table(
        console, ["phase", "params", "active"], [["a" * 15, "1" * 12, "2" * 12]], (), ["active"]
    )
    assert "2" not in out.getvalue()
    print_table(console, ["phase", "params"], [["b" * 60, "1 M"]])
    assert "b" * 60 in out.getvalue().splitlines()
    print_heading(console, "c" * 60)
    assert "c" * 60 in out.getvalue().splitlines()


@pytest.mark.parametrize(
    ("columns", "width"), [(None, 100), ("80", 80), ("3", 40), ("wide", 100), ("9" * 30, 1000)]
)
def test_a_redirected_output_is_as_wide_as_columns_says(monkeypatch, columns, width):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert make_stdout_console().width == width
