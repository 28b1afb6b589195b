"""Report a run on the console: banners, boundaries, progress and the final summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from growlm.inference.outputs import replace_control_characters
from growlm.model.model_size import ParameterReport
from growlm.reporting.console.check_table import print_checks, print_verdict, select_findings
from growlm.reporting.console.console_layout import (
    Cell,
    print_heading,
    print_indented,
    print_table,
)
from growlm.reporting.console.plain_console import make_stdout_console
from growlm.reporting.console.plan_table import print_plan
from growlm.reporting.console.progress_display import ProgressDisplay
from growlm.reporting.events import RunListener
from growlm.reporting.records import (
    BoundaryRecord,
    HistoryRow,
    PhaseStart,
    PhaseSummary,
    ReusedPhases,
    RunSummary,
)
from growlm.runtime.number_format import (
    MISSING,
    format_bytes,
    format_count,
    format_jump,
    format_large_count,
    format_learning_rate,
    format_loss,
    format_magnitude,
    format_seconds,
    format_share,
)


class ConsoleReporter(RunListener):
    """Listener that prints events, with progress bars on a terminal and plain lines elsewhere.

    Args:
        console: Console to print to; None for standard output.
        verbose: Whether every check is printed, not only those that did not pass.
        clock: Function that returns the current time in seconds.
    """

    def __init__(
        self,
        console: Console | None = None,
        verbose: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or make_stdout_console()
        self.verbose = verbose
        self.progress_display = ProgressDisplay(self.console, clock)
        self._pending_row: HistoryRow | None = None
        self._initial_memory = 0

    def show_plan(self, forecast: Mapping[str, Any]) -> None:
        """Print the planner's table, and estimate the remaining time from it from now on."""
        print_plan(self.console, forecast)
        self.progress_display.set_plan(forecast["phases"])

    def task_progress(self, task: str, done: int, total: int | None, note: str = "") -> None:
        """Update the bar; without a terminal, print a line when a task starts and its notes at intervals."""
        self.progress_display.show_task(task, done, total, note)

    def growth_started(self, from_phase: str, to_phase: str) -> None:
        """Print the heading of the boundary."""
        self.progress_display.begin(f"growing into {to_phase}")
        self.console.print()
        print_heading(self.console, f"{from_phase} → {to_phase}: growing")

    def boundary_finished(self, boundary: BoundaryRecord) -> None:
        """Print what was grown, and the verdict of the checks."""
        self.progress_display.begin(f"starting {boundary.to_phase}")
        lines = list(boundary.growth)
        if boundary.noise:
            noise = boundary.noise
            sigmas = (format_magnitude(noise[key]) for key in ("sigma_min", "sigma_max"))
            lines.append(
                f"Noise on {noise['matrices']} matrices, σ {' to '.join(sigmas)}, capped on "
                f"{noise['capped']}"
                + (
                    f", limited by up to {format_share(noise['limited_max'])} of a matrix's weights"
                    if noise.get("limited_max")
                    else ""
                )
            )
        lines.append(f"Optimizer state: {_format_optimizer_state(boundary)}")
        lines.append(f"Grown and checked in {format_seconds(boundary.seconds)}")
        for line in lines:
            print_indented(self.console, line)
        print_verdict(self.console, boundary.report, self.verbose)

    def phase_started(self, start: PhaseStart) -> None:
        """Print the banner of the phase."""
        self.progress_display.begin(start.name)
        self._initial_memory = start.initial_memory_bytes
        parameters = start.parameters
        self.console.print()
        print_heading(self.console, f"Phase {start.index + 1} of {start.num_phases}: {start.name}")
        trained = "Not trained"
        if start.steps:
            trained = f"Steps {start.steps:,}  |  LR {format_learning_rate(start.lr)}"
        print_indented(self.console, f"{trained}  |  Device {start.device}  |  {start.precision}")
        figures = [
            ("Total parameters", format_large_count(parameters.total), ""),
            (
                "Active per token",
                format_large_count(parameters.active),
                _format_experts(parameters),
            ),
        ]
        if parameters.num_experts:
            idle = f"({parameters.idle_experts} experts idle)"
            share = format_share(parameters.efficiency)
            figures += [
                ("Inactive parameters", format_large_count(parameters.inactive), idle),
                ("Efficiency", share, "active per forward pass"),
            ]
        for name, figure, note in figures:
            print_indented(self.console, f"{name:<19}  {figure:>8}  {note}".rstrip())

    def run_resumed(self, phase: str, step: int, steps: int) -> None:
        """Print where the run resumes."""
        name = f"[bold]{escape(phase)}[/]"
        where = f"{name} after step {step:,} of {steps:,}" if step < steps else f"after {name}"
        self.console.print(f"Resuming {where}", soft_wrap=True)

    def phases_reused(self, reused: ReusedPhases) -> None:
        """Print which phases are reused, and from which run."""
        self.progress_display.stop()
        names = ", ".join(reused.phases)
        text = f"reused from {reused.run}: {names} ({format_seconds(reused.seconds)} saved)"
        self.console.print(text, markup=False, soft_wrap=True)

    def message_logged(self, text: str) -> None:
        """Print the message, unbroken where the output is kept."""
        self.progress_display.stop()
        if self.console.is_terminal:
            print_indented(self.console, text, 0)
        else:
            self.console.print(text, markup=False, soft_wrap=True)

    def step_finished(self, phase: str, step: int, steps: int, loss: float | None) -> None:
        """Update the bars; without a terminal, print the step's row if a line is due."""
        row, self._pending_row = self._pending_row, None
        self.progress_display.show_step(phase, step, steps, loss, row)

    def row_logged(self, row: HistoryRow) -> None:
        """Keep the row, to be printed with its step if there are no bars and a line is due."""
        self._pending_row = row

    def validation_finished(self, row: HistoryRow) -> None:
        """Print the validation loss."""
        where = f"{escape(row['phase'])} step {row['step']:>5,}"
        sets = "".join(
            f", {escape(name)} {format_loss(measures['loss'])}"
            for name, measures in row.get("evaluation", {}).items()
        )
        line = f"  {where}  validation loss {format_loss(row['val_loss'])}{sets}"
        self.progress_display.print_line(line)

    def boundary_evaluated(self, boundary: BoundaryRecord) -> None:
        """Print the losses of the evaluation sets before and after the growth."""
        losses = ", ".join(
            f"{escape(name)} {format_change(measures, 'loss_before', 'loss_after')}"
            for name, measures in boundary.evaluation.items()
        )
        where = escape(f"{boundary.from_phase} → {boundary.to_phase}")
        self.progress_display.print_line(f"  {where}: {losses}")

    def phase_finished(self, summary: PhaseSummary) -> None:
        """Print time, throughput, peak memory and the router check."""
        self.progress_display.begin(f"after {summary.name}")
        speed = summary.tokens_per_second
        duration = format_seconds(summary.wall_time_s)
        steps = f"{summary.steps:,} steps in {duration} with growth and validation"
        if speed is not None:
            steps += f"; {format_count(speed)} tokens/s without them"
        print_indented(self.console, steps)
        print_indented(
            self.console, _format_peak_memory(summary.peak_memory_bytes, self._initial_memory)
        )
        if summary.router_check is not None:
            checks = {"router_lock": summary.router_check}
            if self.verbose or select_findings(checks):
                print_checks(self.console, checks)
            else:
                print_indented(self.console, Text("Router lock check passed", style="bold green"))

    def warning_logged(self, row: HistoryRow, text: str) -> None:
        """Print the warning."""
        line = Text().append("warning", style="bold yellow")
        line.append(f" {row['phase']} step {row['step']:,}: {text}")
        print_indented(self.console, line)

    def run_finished(self, summary: RunSummary) -> None:
        """Print the boundary summary and the samples."""
        self.progress_display.begin("after the last phase")
        self.console.print()
        print_heading(self.console, "Boundary summary")
        jumps = {b.to_phase: format_jump(b.report.jump) for b in summary.boundaries}
        rows = [
            [
                phase.name,
                format_large_count(phase.total_parameters),
                format_large_count(phase.active_parameters),
                f"{format_loss(phase.first_loss)} → {format_loss(phase.final_loss)}",
                f"{format_loss(phase.initial_val_loss)} → {format_loss(phase.val_loss)}",
                format_loss(phase.val_bits_per_byte),
                jumps.get(phase.name, MISSING),
            ]
            for phase in summary.phases
        ]
        titles = (
            "phase",
            "params",
            "active",
            "training loss",
            "validation loss",
            "bits/byte",
            "jump",
        )
        print_table(self.console, titles, rows, optional=["active"])
        _print_evaluation(self.console, summary)
        for boundary in summary.boundaries:
            for finding in boundary.findings:
                line = Text().append("finding", style="bold yellow")
                line.append(f" {boundary.from_phase} → {boundary.to_phase}: {finding}")
                print_indented(self.console, line, 0)
        self._print_samples(summary)

    def close(self, failed: bool) -> None:
        """Remove the bars from the terminal."""
        self.progress_display.close()

    def _print_samples(self, summary: RunSummary) -> None:
        samples = [phase for phase in summary.phases if phase.sample]
        if not samples:
            return
        self.console.print()
        print_heading(self.console, "Samples")
        for phase in samples:
            text = Text().append(f"{phase.name}: ", style="bold")
            sample = replace_control_characters(" ".join(phase.sample.split()))
            text.append(sample)
            print_indented(self.console, text, 0)


def _format_peak_memory(peak: int, initial: int) -> str:
    """Return a phase's peak memory as the plan counts it, and that of the whole process."""
    if not 0 < initial <= peak:
        return f"Peak memory of the process {format_bytes(peak)}"
    above = format_bytes(peak - initial)
    return f"Peak memory {above} above the start of the run ({format_bytes(peak)} in all)"


def format_change(measures: Mapping[str, float], before: str, after: str) -> str:
    """Format a measure before and after: `2.3456 → 2.3456`; a dash stands for one that is not there."""
    return " → ".join(format_loss(measures.get(key)) for key in (before, after))


def _print_evaluation(console: Console, summary: RunSummary) -> None:
    """Print loss and bits per byte of each evaluation set."""
    sets = list(summary.phases[-1].evaluation) if summary.phases else []
    if not sets:
        return
    rows: list[list[Cell]] = []
    for name in sets:
        for phase in summary.phases:
            measures = phase.evaluation.get(name, {})
            first = phase.initial_evaluation.get(name, {}).get("loss")
            losses = {"first": first} if first is not None else {}
            change = format_change(measures | losses, "first", "loss")
            is_first = phase is summary.phases[0]
            bits = format_loss(measures.get("bits_per_byte"))
            rows.append([name if is_first else "", phase.name, change, bits])
    console.print()
    titles = ("evaluation set", "phase", "loss", "bits/byte")
    print_table(console, titles, rows, left=["phase"], num_keys=2)


def _format_optimizer_state(boundary: BoundaryRecord) -> str:
    if not boundary.inexact_because:
        return boundary.optimizer_state
    return f"scaled, not exact: {'; '.join(boundary.inexact_because)}"


def _format_experts(parameters: ParameterReport) -> str:
    if not parameters.num_experts:
        return "(dense model)"
    return f"(top-{parameters.top_k} of {parameters.num_experts} experts)"
