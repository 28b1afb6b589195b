"""Report a run on the console: banners, boundaries, progress and the final summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from growlm.inference.outputs import replace_control_characters
from growlm.model.model_size import ParameterReport
from growlm.reporting.console.check_table import print_checks
from growlm.reporting.console.plain_console import make_stdout_console
from growlm.reporting.console.plan_table import format_duration, print_plan
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


def format_millions(count: int) -> str:
    """Format a count in millions: 1234567 -> '1.23 M'."""
    return f"{count / 1e6:,.2f} M"


class ConsoleReporter(RunListener):
    """Listener that prints events, with progress bars on a terminal and plain lines elsewhere.

    Args:
        console: Console to print to; None for standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or make_stdout_console()
        self.progress_display = ProgressDisplay(self.console)
        self._pending_row: HistoryRow | None = None
        self._initial_memory = 0

    def show_plan(self, forecast: Mapping[str, Any]) -> None:
        """Print the planner's table, and estimate the remaining time from it from now on."""
        print_plan(self.console, forecast)
        self.progress_display.set_plan(forecast["phases"])

    def task_progress(self, task: str, done: int, total: int | None, note: str = "") -> None:
        """Update the bar; without a terminal, print a line when a task starts and its notes at intervals."""
        self.progress_display.show_task(task, done, total, note)

    def boundary_finished(self, boundary: BoundaryRecord) -> None:
        """Print what was grown, and the checks."""
        self.progress_display.stop()
        emit = self.console.print
        emit()
        self.console.rule(
            f"[bold]{escape(f'{boundary.from_phase} → {boundary.to_phase}')}: growing", align="left"
        )
        for line in boundary.growth:
            emit(f"  {line}", markup=False)
        if boundary.noise:
            noise = boundary.noise
            emit(
                f"  Noise on {noise['matrices']} matrices, σ {noise['sigma_min']:.1e} to "
                f"{noise['sigma_max']:.1e}, capped on {noise['capped']}"
            )
        emit(f"  Optimizer state: {_format_optimizer_state(boundary)}", markup=False)
        print_checks(self.console, boundary.report.checks)
        report = boundary.report
        emit(
            f"  Probe loss {report.loss_before:.6f} → {report.loss_after:.6f}, "
            f"jump [bold]{report.jump:+.1e}[/] ({boundary.seconds:.1f} s)"
        )

    def phase_started(self, start: PhaseStart) -> None:
        """Print the banner of the phase."""
        self.progress_display.stop()
        self._initial_memory = start.initial_memory_bytes
        emit, parameters = self.console.print, start.parameters
        emit()
        self.console.rule(
            f"[bold]Phase {start.index + 1} of {start.num_phases}: {escape(start.name)}",
            align="left",
        )
        trained = f"Steps {start.steps:,}  |  LR {start.lr:g}" if start.steps else "Not trained"
        emit(f"  {trained}  |  Device {start.device}  |  {start.precision}")
        emit(f"  Total parameters     {format_millions(parameters.total):>12}")
        active, experts = format_millions(parameters.active), _format_active_experts(parameters)
        emit(f"  Active per token     {active:>12}  {experts}")
        if parameters.num_experts:
            idle = f"({parameters.idle_experts} experts idle)"
            emit(f"  Inactive parameters  {format_millions(parameters.inactive):>12}  {idle}")
            emit(f"  Efficiency           {parameters.efficiency:>12.1%}  active per forward pass")

    def run_resumed(self, phase: str, step: int, steps: int) -> None:
        """Print where the run resumes."""
        name = f"[bold]{escape(phase)}[/]"
        where = f"{name} after step {step:,} of {steps:,}" if step < steps else f"after {name}"
        self.console.print(f"Resuming {where}")

    def phases_reused(self, reused: ReusedPhases) -> None:
        """Print which phases are reused, and from which run."""
        self.progress_display.stop()
        names = ", ".join(reused.phases)
        text = f"reused from {reused.run}: {names} ({format_duration(reused.seconds)} saved)"
        self.console.print(text, markup=False, soft_wrap=True)

    def message_logged(self, text: str) -> None:
        """Print the message."""
        self.progress_display.stop()
        self.console.print(text, markup=False, soft_wrap=True)

    def step_finished(self, phase: str, step: int, steps: int, loss: float | None) -> None:
        """Update the bars."""
        self.progress_display.show_step(phase, step, steps, loss)
        if self._pending_row is not None:
            self.progress_display.show_row(self._pending_row, steps)
            self._pending_row = None

    def row_logged(self, row: HistoryRow) -> None:
        """Keep the row, to be printed with its step if there are no bars and a line is due."""
        self._pending_row = row

    def validation_finished(self, row: HistoryRow) -> None:
        """Print the validation loss."""
        where = f"{escape(row['phase'])} step {row['step']:>5}"
        sets = "".join(
            f", {escape(name)} {measures['loss']:.4f}"
            for name, measures in row.get("evaluation", {}).items()
        )
        line = f"  {where}  validation loss {row['val_loss']:.4f}{sets}"
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
        self.progress_display.stop()
        speed = summary.tokens_per_second
        self.console.print(
            f"  {summary.steps} steps in {summary.wall_time_s:.0f} s with growth and validation"
            + ("" if speed is None else f"; {speed:,.0f} tokens/s in the steps alone")
        )
        self.console.print(_format_peak_memory(summary.peak_memory_bytes, self._initial_memory))
        if summary.router_check is not None:
            print_checks(self.console, {"router_lock": summary.router_check})

    def warning_logged(self, row: HistoryRow, text: str) -> None:
        """Print the warning."""
        where = escape(f"{row['phase']} step {row['step']}: {text}")
        self.progress_display.print_line(f"  [bold yellow]warning[/] {where}")

    def run_finished(self, summary: RunSummary) -> None:
        """Print the boundary summary and the samples."""
        self.progress_display.stop()
        self.console.print()
        self.console.rule("[bold]Boundary summary", align="left")
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("phase")
        names = ("params", "active", "first loss", "final", "drop", "validation loss")
        for name in (*names, "bits/byte", "jump"):
            table.add_column(name, justify="right", no_wrap=True)
        jumps = {b.to_phase: b for b in summary.boundaries}
        for phase in summary.phases:
            jump = f"{jumps[phase.name].report.jump:+.1e}" if phase.name in jumps else "–"
            table.add_row(
                phase.name,
                format_millions(phase.total_parameters),
                format_millions(phase.active_parameters),
                *_format_losses(phase),
                f"{phase.initial_val_loss:.4f} → {phase.val_loss:.4f}",
                "–" if (bits := phase.val_bits_per_byte) is None else f"{bits:.4f}",
                jump,
            )
        self.console.print(table)
        _print_evaluation(self.console, summary)
        for boundary in summary.boundaries:
            for finding in boundary.findings:
                self.console.print(
                    f"[yellow]finding[/] {boundary.from_phase} → {boundary.to_phase}: ",
                    Text(finding),
                )
        self._print_samples(summary)

    def close(self, failed: bool) -> None:
        """Remove the bars from the terminal."""
        self.progress_display.stop()

    def _print_samples(self, summary: RunSummary) -> None:
        samples = [phase for phase in summary.phases if phase.sample]
        if not samples:
            return
        self.console.print()
        self.console.rule("[bold]Samples", align="left")
        grid = Table.grid(padding=(0, 2))
        for phase in samples:
            grid.add_row(
                Text(phase.name, style="bold"),
                Text(replace_control_characters(" ".join(phase.sample.split()))),
            )
        self.console.print(grid)


def _format_peak_memory(peak: int, initial: int) -> str:
    """Return a phase's peak memory as the plan counts it, and that of the whole process."""
    if not 0 < initial <= peak:
        return f"  Peak memory of the process {decimal(peak)}"
    above = f"{decimal(peak - initial)} above the start of the run"
    return f"  Peak memory {above}, as the plan counts it; {decimal(peak)} of the process"


def format_change(measures: Mapping[str, float], before: str, after: str) -> str:
    """Format a measure before and after: `2.3456 → 2.3456`; a dash stands for one that is not there."""
    values = [measures.get(key) for key in (before, after)]
    return " → ".join("–" if value is None else f"{value:.4f}" for value in values)


def _print_evaluation(console: Console, summary: RunSummary) -> None:
    """Print loss and bits per byte of each evaluation set, a column each."""
    sets = list(summary.phases[-1].evaluation) if summary.phases else []
    if not sets:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("evaluation set")
    table.add_column("phase")
    for name in ("loss", "bits/byte"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in sets:
        for phase in summary.phases:
            measures = phase.evaluation.get(name, {})
            first = phase.initial_evaluation.get(name, {}).get("loss")
            losses = {"first": first} if first is not None else {}
            change = format_change(measures | losses, "first", "loss")
            bits = measures.get("bits_per_byte")
            is_first = phase is summary.phases[0]
            table.add_row(
                Text(name if is_first else ""),
                phase.name,
                change,
                "–" if bits is None else f"{bits:.4f}",
            )
    console.print()
    console.print(table)


def _format_losses(phase: PhaseSummary) -> tuple[str, str, str]:
    first, last = phase.first_loss, phase.final_loss
    if first is None or last is None:
        return "–", "–", "–"
    return f"{first:.4f}", f"{last:.4f}", f"{first - last:.4f}"


def _format_optimizer_state(boundary: BoundaryRecord) -> str:
    if not boundary.inexact_because:
        return boundary.optimizer_state
    return f"scaled, not exact: {'; '.join(boundary.inexact_because)}"


def _format_active_experts(parameters: ParameterReport) -> str:
    if not parameters.num_experts:
        return "(dense model)"
    return f"(top-{parameters.top_k} of {parameters.num_experts} experts)"
