"""Build the tables of runs, phases and savings for the page and the console."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from growlm.reporting.html.curves import finite_or_none
from growlm.reporting.html.savings import COST_AXES, Savings
from growlm.reporting.html.sweep_parameters import shorten_keys
from growlm.reporting.reading import outcome
from growlm.reporting.reading.run_files import Run
from growlm.runtime import number_format

Cell = dict[str, Any]
"""Table cell: `text`, `sort` (sort key: number, string or None), and optional `link`, `status` and `note`."""
COST_FORMATTERS: dict[str, Callable[[float | None], str]] = {
    "flops": number_format.format_flops,
    "tokens": number_format.format_large_count,
    "seconds": number_format.format_seconds,
}
COST_NAMES = {"flops": "FLOPs", "tokens": "tokens", "seconds": "time"}
"""Display names of the costs."""
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
    """Table with columns and rows of cells."""

    columns: list[dict[str, Any]] = field(default_factory=list)
    """`title`, `numeric` and `help` (a tooltip, may be empty) of each column."""
    rows: list[list[Cell]] = field(default_factory=list)

    def keep_columns(self, kept: Sequence[int]) -> None:
        """Remove all columns but those with the given indices."""
        self.columns = [self.columns[index] for index in kept]
        self.rows = [[row[index] for index in kept] for row in self.rows]

    def to_json(self) -> dict[str, Any]:
        """Return the table as JSON data for the page."""
        return {"columns": self.columns, "rows": self.rows}


def number_cell(value: float | None, formatter: Callable[[float | None], str]) -> Cell:
    """Return a cell that sorts by its value."""
    value = finite_or_none(value)
    return {"text": formatter(value), "sort": value}


def text_cell(text: object) -> Cell:
    """Return a cell that sorts by its number if the text is one, else by its text."""
    string = str(text)
    try:
        value = finite_or_none(float(string))
    except ValueError:
        value = None
    return {"text": string, "sort": string if value is None else value}


def make_columns(*titles: str, num_text: int = 1, **helps: str) -> list[dict[str, Any]]:
    """Return the columns of a table.

    Args:
        titles: Titles of the columns.
        num_text: Number of columns at the left that hold text; the others hold numbers.
        helps: Tooltips by title, with underscores for spaces.
    """
    return [
        {
            "title": title,
            "numeric": index >= num_text,
            "help": helps.get(title.replace(" ", "_"), ""),
        }
        for index, title in enumerate(titles)
    ]


def build_phase_table(run: Run) -> ReportTable:
    """Return a table with a row per phase of a run."""
    table = ReportTable(
        make_columns(
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
        is_short = planned and steps is not None and steps < planned
        out_of = f" of {number_format.format_count(planned)}" if is_short else ""
        losses = [
            (finite_or_none(phase.get(first)), finite_or_none(phase.get(last)))
            for first, last in (("first_loss", "final_loss"), ("initial_val_loss", "val_loss"))
        ]
        table.rows.append(
            [
                text_cell(phase.get("name")),
                number_cell(phase.get("total_parameters"), number_format.format_large_count),
                number_cell(phase.get("active_parameters"), number_format.format_large_count),
                {
                    "text": f"{number_format.format_count(steps)}{out_of}",
                    "sort": steps,
                },
                number_cell(phase.get("tokens"), number_format.format_large_count),
                number_cell(phase.get("flops"), COST_FORMATTERS["flops"]),
                number_cell(phase.get("wall_time_s"), number_format.format_seconds),
                number_cell(phase.get("tokens_per_second"), number_format.format_large_count),
                number_cell(
                    phase.get("peak_memory_bytes"),
                    number_format.format_bytes,
                ),
                *(
                    {
                        "text": f"{number_format.format_loss(first)} → {number_format.format_loss(last)}",
                        "sort": last,
                    }
                    for first, last in losses
                ),
            ]
        )
    return table


def build_evaluation_table(run: Run) -> ReportTable | None:
    """Return a table with the validation loss and that of each evaluation set, by phase; None without sets."""
    sets = outcome.list_evaluation_sets(run)
    if not sets:
        return None
    help_text = "loss before the first step and after the last; bits per byte after it"
    table = ReportTable(make_columns("phase", "validation", *sets))
    for column in table.columns[1:]:
        column["help"] = help_text
    for phase in outcome.collect_phase_metrics(run):
        validation = _loss_cell(
            phase.get("initial_val_loss"), phase.get("val_loss"), phase.get("val_bits_per_byte")
        )
        cells = [
            _loss_cell(
                outcome.set_measure(phase, "initial_evaluation", name),
                outcome.set_measure(phase, "evaluation", name),
                outcome.set_measure(phase, "evaluation", name, "bits_per_byte"),
            )
            for name in sets
        ]
        table.rows.append([text_cell(phase.get("name")), validation, *cells])
    return table


def _loss_cell(*values: Any) -> Cell:
    """Return a cell of a loss before and after, and in bits per byte."""
    first, last, bits = map(finite_or_none, values)
    losses = f"{number_format.format_loss(first)} → {number_format.format_loss(last)}"
    return {
        "text": losses if bits is None else f"{losses}; {number_format.format_loss(bits)}",
        "sort": last,
    }


def build_run_table(
    runs: Sequence[Run], parameter_keys: Sequence[str], report_dir: Path | None = None
) -> ReportTable:
    """Return a table with a row per run.

    Args:
        runs: Runs with their `sweep_parameters`.
        parameter_keys: Keys of the sweep parameters, in order.
        report_dir: Folder of the report, for links to the runs' own reports; None for no links.
    """
    names = shorten_keys(parameter_keys)
    boundaries = _boundary_names(runs)
    table = ReportTable(
        make_columns("run", "status", num_text=2)
        + [{"title": names[key], "numeric": True, "help": key} for key in parameter_keys]
        + make_columns(*OUTCOME_COLUMNS, num_text=0)
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
                    text_cell(run.sweep_parameters.get(key, number_format.MISSING))
                    for key in parameter_keys
                ),
                number_cell(outcome.final_loss(run), number_format.format_loss),
                number_cell(outcome.final_val_loss(run), number_format.format_loss),
                number_cell(outcome.largest_jump(run), number_format.format_jump),
                number_cell(outcome.total_cost(run, "seconds"), number_format.format_seconds),
                number_cell(outcome.total_cost(run, "flops"), COST_FORMATTERS["flops"]),
                number_cell(outcome.total_cost(run, "tokens"), number_format.format_large_count),
                number_cell(parameters, number_format.format_large_count),
                *(number_cell(jumps.get(name), number_format.format_jump) for name in boundaries),
            ]
        )
    return table


def _boundary_names(runs: Sequence[Run], max_names: int = 6) -> list[str]:
    names = list(
        dict.fromkeys(outcome.format_boundary_name(b) for run in runs for b in run.boundaries)
    )
    return names if 1 < len(names) <= max_names else []


def _report_link(run: Run, report_dir: Path | None) -> dict[str, str]:
    report = run.folder / "report.html"
    if report_dir is None or not report.is_file():
        return {}
    relative = Path(os.path.relpath(report.resolve(), report_dir.resolve()))
    return {"link": f"./{quote(relative.as_posix())}"}


def build_savings_by_reference_table(savings: Savings) -> ReportTable:
    """Return a table with a row per run and reference: the costs that the run saved."""
    table = ReportTable(
        make_columns(
            "run", "against", *(f"{COST_NAMES[cost]} saved" for cost in COST_AXES), num_text=2
        )
    )
    for one in savings.runs:
        for reference, saved in one.saved_fractions.items():
            cells = [
                number_cell(saved.get(cost), number_format.format_percent) for cost in COST_AXES
            ]
            table.rows.append([text_cell(one.run.name), text_cell(reference), *cells])
    return table


def build_savings_table(savings: Savings) -> ReportTable:
    """Return a table with a row per run: its costs to the target loss, and its savings against each reference."""
    table = ReportTable(make_columns("run", *(COST_NAMES[cost] for cost in COST_AXES)))
    for reference in savings.references:
        table.columns += [
            {"title": f"{COST_NAMES[cost]} saved vs {reference}", "numeric": True, "help": ""}
            for cost in COST_AXES
        ]
    for one in savings.runs:
        if one.costs is None:
            reason = "never reached it" if one.has_curve else "too few logged steps"
            cells: list[Cell] = [{"text": reason, "sort": None}]
            cells += [{"text": number_format.MISSING, "sort": None}] * (len(COST_AXES) - 1)
        else:
            cells = [number_cell(one.costs[cost], COST_FORMATTERS[cost]) for cost in COST_AXES]
        for reference in savings.references:
            saved = one.saved_fractions.get(reference, {})
            cells += [
                number_cell(saved.get(cost), number_format.format_percent) for cost in COST_AXES
            ]
        table.rows.append([text_cell(one.run.name), *cells])
    return table
