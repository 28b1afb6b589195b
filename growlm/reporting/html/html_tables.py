"""Tables for the page and for the console: what a cell says, and what it is sorted by."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from growlm.reporting.html import number_format as figures
from growlm.reporting.html.curves import finite
from growlm.reporting.html.savings import COSTS, Savings
from growlm.reporting.html.sweep_parameters import short_names
from growlm.reporting.reading import outcome
from growlm.reporting.reading.run_files import Run

Cell = dict[str, Any]
"""`text`; `sort`: a number, a text or None; `link` and `status` where it has one."""
WRITERS: dict[str, Callable[[float | None], str]] = {
    "flops": lambda value: figures.scaled(value, "FLOP"),
    "tokens": figures.scaled,
    "seconds": figures.seconds,
}
NAMES = {"flops": "FLOPs", "tokens": "tokens", "seconds": "time"}
"""Of costs."""
OUTCOMES = (
    "training loss",
    "validation loss",
    "largest jump",
    "time",
    "FLOPs",
    "tokens",
    "parameters",
)


@dataclass
class Table:
    """Columns and rows."""

    columns: list[dict[str, Any]] = field(default_factory=list)
    """`title`, `numeric`, and `help` where the title does not say it all."""
    rows: list[list[Cell]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For the page."""
        return {"columns": self.columns, "rows": self.rows}


def number(value: float | None, write: Callable[[float | None], str]) -> Cell:
    """A cell that sorts by its value."""
    value = finite(value)
    return {"text": write(value), "sort": value}


def word(text: object) -> Cell:
    """A cell that sorts by its number, if it is one, else by its text."""
    shown = str(text)
    try:
        value = finite(float(shown))
    except ValueError:
        value = None
    return {"text": shown, "sort": shown if value is None else value}


def _columns(*titles: str, words: int = 1, **helps: str) -> list[dict[str, Any]]:
    return [
        {"title": title, "numeric": index >= words, "help": helps.get(title.replace(" ", "_"), "")}
        for index, title in enumerate(titles)
    ]


def phase_table(run: Run) -> Table:
    """A row per phase."""
    table = Table(
        _columns(
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
    for phase in outcome.phases(run):
        planned, steps = phase.get("planned"), phase.get("steps")
        part = f" of {planned:,}" if planned and steps is not None and steps < planned else ""
        losses = [
            (finite(phase.get(first)), finite(phase.get(last)))
            for first, last in (("first_loss", "final_loss"), ("initial_val_loss", "val_loss"))
        ]
        table.rows.append(
            [
                word(phase.get("name")),
                number(phase.get("total_parameters"), figures.scaled),
                number(phase.get("active_parameters"), figures.scaled),
                {"text": figures.NONE if steps is None else f"{steps:,}{part}", "sort": steps},
                number(phase.get("tokens"), figures.scaled),
                number(phase.get("flops"), WRITERS["flops"]),
                number(phase.get("wall_time_s"), figures.seconds),
                number(phase.get("tokens_per_second"), figures.scaled),
                number(phase.get("peak_memory_bytes"), lambda value: figures.scaled(value, "B")),
                *(
                    {"text": f"{figures.loss(first)} → {figures.loss(last)}", "sort": last}
                    for first, last in losses
                ),
            ]
        )
    return table


def run_table(runs: Sequence[Run], dials: Sequence[str], beside: Path | None = None) -> Table:
    """A row per run.

    Args:
        runs: With their dials.
        dials: In order.
        beside: Folder of the report, for links to the runs' own; None for none.
    """
    names = short_names(dials)
    boundaries = _boundary_names(runs)
    table = Table(
        _columns("run", "status", words=2)
        + [{"title": names[dial], "numeric": True, "help": dial} for dial in dials]
        + _columns(*OUTCOMES, words=0)
        + [
            {"title": f"jump {name}", "numeric": True, "help": "change of loss as the model grew"}
            for name in boundaries
        ]
    )
    for run in runs:
        jumps = {outcome.boundary_name(b): finite(b.get("jump")) for b in run.boundaries}
        phases = outcome.phases(run)
        parameters = phases[-1].get("total_parameters") if phases else None
        table.rows.append(
            [
                word(run.name) | _link(run, beside),
                word(run.status) | {"status": run.status, "note": run.message or ""},
                *(word(run.dials.get(dial, figures.NONE)) for dial in dials),
                number(outcome.final_loss(run), figures.loss),
                number(outcome.final_val_loss(run), figures.loss),
                number(outcome.largest_jump(run), figures.jump),
                number(outcome.cost(run, "seconds"), figures.seconds),
                number(outcome.cost(run, "flops"), WRITERS["flops"]),
                number(outcome.cost(run, "tokens"), figures.scaled),
                number(parameters, figures.scaled),
                *(number(jumps.get(name), figures.jump) for name in boundaries),
            ]
        )
    return table


def _boundary_names(runs: Sequence[Run], most: int = 6) -> list[str]:
    names = list(dict.fromkeys(outcome.boundary_name(b) for run in runs for b in run.boundaries))
    return names if 1 < len(names) <= most else []


def _link(run: Run, beside: Path | None) -> dict[str, str]:
    report = run.folder / "report.html"
    if beside is None or not report.is_file():
        return {}
    relative = Path(os.path.relpath(report.resolve(), beside.resolve()))
    return {"link": f"./{quote(relative.as_posix())}"}


def saved_table(found: Savings) -> Table:
    """A row for every run and reference: what the run saved."""
    table = Table(_columns("run", "against", *(f"{NAMES[cost]} saved" for cost in COSTS), words=2))
    for one in found.runs:
        for reference, saved in one.saved.items():
            cells = [number(saved.get(cost), figures.percent) for cost in COSTS]
            table.rows.append([word(one.run.name), word(reference), *cells])
    return table


def savings_table(found: Savings) -> Table:
    """A row per run: what it took to the loss, and what it saved against each reference."""
    table = Table(_columns("run", *(NAMES[cost] for cost in COSTS)))
    for reference in found.references:
        table.columns += [
            {"title": f"{NAMES[cost]} saved vs {reference}", "numeric": True, "help": ""}
            for cost in COSTS
        ]
    for one in found.runs:
        if one.costs is None:
            why = "never reached it" if one.has_curve else "too few logged steps"
            cells: list[Cell] = [{"text": why, "sort": None}]
            cells += [{"text": figures.NONE, "sort": None}] * (len(COSTS) - 1)
        else:
            cells = [number(one.costs[cost], WRITERS[cost]) for cost in COSTS]
        for reference in found.references:
            saved = one.saved.get(reference, {})
            cells += [number(saved.get(cost), figures.percent) for cost in COSTS]
        table.rows.append([word(one.run.name), *cells])
    return table
