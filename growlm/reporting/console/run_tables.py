"""Print the results of runs as console tables."""

from __future__ import annotations

from rich.console import Console

from growlm.reporting.console.console_layout import print_table
from growlm.reporting.html.html_tables import (
    ReportTable,
    build_phase_table,
    build_run_table,
    build_savings_by_reference_table,
    build_savings_table,
)
from growlm.reporting.html.report_writer import Report
from growlm.reporting.html.savings import COST_AXES, compute_savings
from growlm.runtime.number_format import format_loss

PHASE_COLUMNS = (
    "phase",
    "parameters",
    "steps",
    "FLOPs",
    "time",
    "training loss",
    "validation loss",
)
"""Columns that fit on a console; the HTML page shows all."""
RUN_COLUMNS = ("training loss", "validation loss", "largest jump", "FLOPs", "time")


def print_report(console: Console, report: Report) -> None:
    """Print a line per phase of one run, or a line per run and the savings at equal loss of several."""
    if report.is_one_run:
        (run,) = report.runs
        _print_columns(console, build_phase_table(run), PHASE_COLUMNS)
        return
    table = build_run_table(report.runs, report.parameter_keys)
    parameters = [column["title"] for column in table.columns[2 : 2 + len(report.parameter_keys)]]
    # The names of sweep jobs only repeat their parameters.
    names = [] if report.sweep is not None and report.parameter_keys else ["run"]
    _print_columns(console, table, (*names, *parameters, "status", *RUN_COLUMNS))
    for run in report.runs:
        if run.message:
            console.print(f"{run.name}: {run.message}", markup=False)
    if report.sweep is not None and not any(run.baseline for run in report.runs):
        return  # without baselines, sweep jobs have no common reference to save against
    savings = compute_savings(report.runs)
    console.print()
    if isinstance(savings, str):
        console.print(f"Savings at equal loss: not available, {savings}.", markup=False)
        return
    console.print(
        f"Cost to reach a loss of {format_loss(savings.target_loss)} ({savings.loss_description}):",
        markup=False,
    )
    costs = build_savings_table(savings)
    _print_columns(
        console, costs, [column["title"] for column in costs.columns[: 1 + len(COST_AXES)]]
    )
    saved = build_savings_by_reference_table(savings)
    if saved.rows:
        console.print()
        _print_columns(console, saved, [column["title"] for column in saved.columns])


def _print_columns(
    console: Console, table: ReportTable, titles: tuple[str, ...] | list[str]
) -> None:
    indices = [i for title in titles for i, c in enumerate(table.columns) if c["title"] == title]
    columns = [table.columns[index] for index in indices]
    print_table(
        console,
        [column["title"] for column in columns],
        [[row[index]["text"] for index in indices] for row in table.rows],
        left=[column["title"] for column in columns if not column["numeric"]],
    )
