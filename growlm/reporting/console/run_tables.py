"""Finished runs as tables on a console."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from growlm.reporting.html.html_tables import (
    Table,
    phase_table,
    run_table,
    saved_table,
    savings_table,
)
from growlm.reporting.html.report_writer import Report
from growlm.reporting.html.savings import COSTS, savings

OF_A_RUN = ("phase", "parameters", "steps", "FLOPs", "time", "training loss", "validation loss")
"""Columns that a console has room for; the page has all."""
OF_RUNS = ("training loss", "validation loss", "largest jump", "FLOPs", "time")


def print_report(console: Console, report: Report) -> None:
    """A line per phase of one run; of several runs a line each, and what they took to the same loss."""
    if report.is_one_run:
        (run,) = report.runs
        _print(console, phase_table(run), OF_A_RUN)
        return
    table = run_table(report.runs, report.dials)
    dials = [column["title"] for column in table.columns[2 : 2 + len(report.dials)]]
    # Where dials tell the runs apart, their names would only say it again.
    names = [] if report.sweep is not None and report.dials else ["run"]
    _print(console, table, (*names, *dials, "status", *OF_RUNS))
    for run in report.runs:
        if run.message:
            console.print(f"{run.name}: {run.message}", markup=False)
    if report.sweep is not None and not any(run.baseline for run in report.runs):
        return  # jobs that differ in a dial alone are no measure for each other
    found = savings(report.runs)
    console.print()
    if isinstance(found, str):
        console.print(f"Savings at equal loss: none, {found}.", markup=False)
        return
    console.print(f"Until the loss was {found.loss:.4f} ({found.measured_as}):", markup=False)
    taken = savings_table(found)
    _print(console, taken, [column["title"] for column in taken.columns[: 1 + len(COSTS)]])
    saved = saved_table(found)
    if saved.rows:
        console.print()
        _print(console, saved, [column["title"] for column in saved.columns])


def _print(console: Console, table: Table, titles: tuple[str, ...] | list[str]) -> None:
    shown = [i for title in titles for i, c in enumerate(table.columns) if c["title"] == title]
    printed = RichTable(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for index in shown:
        column = table.columns[index]
        printed.add_column(Text(column["title"]), justify="right" if column["numeric"] else "left")
    for row in table.rows:
        printed.add_row(*(Text(row[index]["text"]) for index in shown))
    console.print(printed)
