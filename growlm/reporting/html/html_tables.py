"""Tables for the page and for the console: what a cell says, and what it is sorted by."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from growlm.reporting.html import number_format as figures
from growlm.reporting.html.curves import finite_or_none
from growlm.reporting.html.savings import COST_AXES, Savings
from growlm.reporting.html.sweep_parameters import shorten_keys
from growlm.reporting.reading import outcome
from growlm.reporting.reading.run_files import Run

Cell = dict[str, Any]
"""`text`; `sort`: a number, a text or None; `link` and `status` where it has one."""
COST_FORMATTERS: dict[str, Callable[[float | None], str]] = {
    "flops": lambda value: figures.format_scaled(value, "FLOP"),
    "tokens": figures.format_scaled,
    "seconds": figures.format_seconds,
}
COST_NAMES = {"flops": "FLOPs", "tokens": "tokens", "seconds": "time"}
"""Of costs."""
OUTCOME_COLUMNS = (
    "training loss",
    "validation loss",
    "largest jump",
    "time",
    "FLOPs",
    "tokens",
    "parameters",
)


@dataclass
class ReportTable:
    """Columns and rows."""

    columns: list[dict[str, Any]] = field(default_factory=list)
    """`title`, `numeric`, and `help` where the title does not say it all."""
    rows: list[list[Cell]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For the page."""
        return {"columns": self.columns, "rows": self.rows}


def number_cell(value: float | None, formatter: Callable[[float | None], str]) -> Cell:
    """A cell that sorts by its value."""
    value = finite_or_none(value)
    return {"text": formatter(value), "sort": value}


def text_cell(text: object) -> Cell:
    """A cell that sorts by its number, if it is one, else by its text."""
    shown = str(text)
    try:
        value = finite_or_none(float(shown))
    except ValueError:
        value = None
    return {"text": shown, "sort": shown if value is None else value}


def _make_columns(*titles: str, words: int = 1, **helps: str) -> list[dict[str, Any]]:
    return [
        {"title": title, "numeric": index >= words, "help": helps.get(title.replace(" ", "_"), "")}
        for index, title in enumerate(titles)
    ]


def build_phase_table(run: Run) -> ReportTable:
    """A row per phase."""
    table = ReportTable(
        _make_columns(
            "phase",
            "parameters",
            "active",
            "steps",
            "tokens",
            "FLOPs",
            "time",
            "tokens/s",
            "peak memory",
            "training loss",
            "validation loss",
            active="parameters that one token meets",
            time="of the whole phase: growth, checks, training, validation",
            peak_memory="largest memory of the process during the phase, growth included",
            training_loss="first and last step",
            validation_loss="before the first step and after the last",
        )
    )
    for phase in outcome.collect_phase_metrics(run):
        planned, steps = phase.get("planned"), phase.get("steps")
        part = f" of {planned:,}" if planned and steps is not None and steps < planned else ""
        losses = [
            (finite_or_none(phase.get(first)), finite_or_none(phase.get(last)))
            for first, last in (("first_loss", "final_loss"), ("initial_val_loss", "val_loss"))
        ]
        table.rows.append(
            [
                text_cell(phase.get("name")),
                number_cell(phase.get("total_parameters"), figures.format_scaled),
                number_cell(phase.get("active_parameters"), figures.format_scaled),
                {"text": figures.MISSING if steps is None else f"{steps:,}{part}", "sort": steps},
                number_cell(phase.get("tokens"), figures.format_scaled),
                number_cell(phase.get("flops"), COST_FORMATTERS["flops"]),
                number_cell(phase.get("wall_time_s"), figures.format_seconds),
                number_cell(phase.get("tokens_per_second"), figures.format_scaled),
                number_cell(
                    phase.get("peak_memory_bytes"), lambda value: figures.format_scaled(value, "B")
                ),
                *(
                    {
                        "text": f"{figures.format_loss(first)} → {figures.format_loss(last)}",
                        "sort": last,
                    }
                    for first, last in losses
                ),
            ]
        )
    return table


def build_run_table(
    runs: Sequence[Run], parameter_keys: Sequence[str], report_dir: Path | None = None
) -> ReportTable:
    """A row per run.

    Args:
        runs: With their dials.
        dials: In order.
        beside: Folder of the report, for links to the runs' own; None for none.
    """
    names = shorten_keys(parameter_keys)
    boundaries = _boundary_names(runs)
    table = ReportTable(
        _make_columns("run", "status", words=2)
        + [{"title": names[dial], "numeric": True, "help": dial} for dial in parameter_keys]
        + _make_columns(*OUTCOME_COLUMNS, words=0)
        + [
            {"title": f"jump {name}", "numeric": True, "help": "change of loss as the model grew"}
            for name in boundaries
        ]
    )
    for run in runs:
        jumps = {
            outcome.format_boundary_name(b): finite_or_none(b.get("jump")) for b in run.boundaries
        }
        phases = outcome.collect_phase_metrics(run)
        parameters = phases[-1].get("total_parameters") if phases else None
        table.rows.append(
            [
                text_cell(run.name) | _report_link(run, report_dir),
                text_cell(run.status) | {"status": run.status, "note": run.message or ""},
                *(
                    text_cell(run.sweep_parameters.get(dial, figures.MISSING))
                    for dial in parameter_keys
                ),
                number_cell(outcome.final_loss(run), figures.format_loss),
                number_cell(outcome.final_val_loss(run), figures.format_loss),
                number_cell(outcome.largest_jump(run), figures.format_jump),
                number_cell(outcome.total_cost(run, "seconds"), figures.format_seconds),
                number_cell(outcome.total_cost(run, "flops"), COST_FORMATTERS["flops"]),
                number_cell(outcome.total_cost(run, "tokens"), figures.format_scaled),
                number_cell(parameters, figures.format_scaled),
                *(number_cell(jumps.get(name), figures.format_jump) for name in boundaries),
            ]
        )
    return table


def _boundary_names(runs: Sequence[Run], most: int = 6) -> list[str]:
    names = list(
        dict.fromkeys(outcome.format_boundary_name(b) for run in runs for b in run.boundaries)
    )
    return names if 1 < len(names) <= most else []


def _report_link(run: Run, report_dir: Path | None) -> dict[str, str]:
    report = run.folder / "report.html"
    if report_dir is None or not report.is_file():
        return {}
    relative = Path(os.path.relpath(report.resolve(), report_dir.resolve()))
    return {"link": f"./{quote(relative.as_posix())}"}


def build_savings_by_reference_table(savings: Savings) -> ReportTable:
    """A row for every run and reference: what the run saved."""
    table = ReportTable(
        _make_columns(
            "run", "against", *(f"{COST_NAMES[cost]} saved" for cost in COST_AXES), words=2
        )
    )
    for one in savings.runs:
        for reference, saved in one.saved_fractions.items():
            cells = [number_cell(saved.get(cost), figures.format_percent) for cost in COST_AXES]
            table.rows.append([text_cell(one.run.name), text_cell(reference), *cells])
    return table


def build_savings_table(savings: Savings) -> ReportTable:
    """A row per run: what it took to the loss, and what it saved against each reference."""
    table = ReportTable(_make_columns("run", *(COST_NAMES[cost] for cost in COST_AXES)))
    for reference in savings.references:
        table.columns += [
            {"title": f"{COST_NAMES[cost]} saved vs {reference}", "numeric": True, "help": ""}
            for cost in COST_AXES
        ]
    for one in savings.runs:
        if one.costs is None:
            why = "never reached it" if one.has_curve else "too few logged steps"
            cells: list[Cell] = [{"text": why, "sort": None}]
            cells += [{"text": figures.MISSING, "sort": None}] * (len(COST_AXES) - 1)
        else:
            cells = [number_cell(one.costs[cost], COST_FORMATTERS[cost]) for cost in COST_AXES]
        for reference in savings.references:
            saved = one.saved_fractions.get(reference, {})
            cells += [number_cell(saved.get(cost), figures.format_percent) for cost in COST_AXES]
        table.rows.append([text_cell(one.run.name), *cells])
    return table
