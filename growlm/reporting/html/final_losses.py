"""Summarize the final losses of finished runs by the values of the settings that distinguish them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from growlm.reporting.html.curves import finite_or_none, round_significant
from growlm.reporting.html.html_tables import ReportTable, make_columns, number_cell, text_cell
from growlm.reporting.reading import outcome
from growlm.reporting.reading.run_files import Run
from growlm.runtime.number_format import MISSING, format_loss

SEED_KEY = "seed"
"""Setting whose values are repetitions: runs that differ in it alone are averaged."""
MAX_GRID_CELLS = 400
"""Largest number of cells of a grid of two settings; larger ones are shown one setting at a time."""
MIN_LOG_RATIO = 20.0
"""Smallest ratio of the largest value to the smallest for which unevenly spaced values get a logarithmic axis."""


def build_final_losses(runs: Sequence[Run], names: dict[str, str]) -> dict[str, Any] | None:
    """Return the final validation losses by setting; None without finished runs or without settings.

    Args:
        runs: Runs with their `sweep_parameters`.
        names: Display name of each setting, by key.

    Returns:
        `dials`: `key`, `name`, `scale` (`log`, `linear` or `category`) and `values` of each setting, the seed
        left out unless it is the only one; `points`: the runs, each with `run` (its index), `at` (the index of its
        value of each dial) and `loss`; `means`: the mean over the runs with the same values, as `at`, `loss` and
        `count`; `isGrid`: whether there are two dials that a grid can show; `table` of the means.
    """
    keys = [key for key in names if key != SEED_KEY] or list(names)
    losses = [
        (index, run, outcome.final_val_loss(run))
        for index, run in enumerate(runs)
        if run.status == "finished"
    ]
    finished = [(index, run, loss) for index, run, loss in losses if loss is not None]
    if not keys or not finished:
        return None
    dials = [_describe_dial(key, names[key], [run for _, run, _ in finished]) for key in keys]
    places = [{value["text"]: i for i, value in enumerate(dial["values"])} for dial in dials]
    points: list[dict[str, Any]] = [
        {
            "run": index,
            "at": [
                place[run.sweep_parameters.get(key, MISSING)]
                for key, place in zip(keys, places, strict=True)
            ],
            "loss": round_significant(loss),
        }
        for index, run, loss in finished
    ]
    groups: dict[tuple[int, ...], list[float]] = {}
    for point in points:
        groups.setdefault(tuple(point["at"]), []).append(point["loss"])
    means = [
        {"at": list(at), "loss": round_significant(fmean(group)), "count": len(group)}
        for at, group in sorted(groups.items())
    ]
    num_cells = math.prod(len(dial["values"]) for dial in dials)
    return {
        "dials": dials,
        "points": points,
        "means": means,
        "isGrid": len(dials) == 2 and num_cells <= MAX_GRID_CELLS,
        "table": _build_table(dials, groups).to_json(),
    }


def _describe_dial(key: str, name: str, runs: Sequence[Run]) -> dict[str, Any]:
    values = order_values([run.sweep_parameters.get(key, MISSING) for run in runs])
    return {"key": key, "name": name, "scale": choose_scale(values), "values": values}


def order_values(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the values of a setting once each: numbers in ascending order, others in order of appearance."""
    values = list(dict.fromkeys(texts))
    numbers = [_parse_number(text) for text in values]
    if all(value is not None for value in numbers):
        pairs = sorted(zip(values, numbers, strict=True), key=lambda pair: pair[1] or 0.0)
        return [{"text": text, "number": value} for text, value in pairs]
    return [{"text": text, "number": None} for text in values]


def choose_scale(values: Sequence[dict[str, Any]]) -> str:
    """Return the axis on which the values are spaced most evenly: `log`, `linear`, or `category` for words.

    Args:
        values: What `order_values` returned.
    """
    numbers = [value["number"] for value in values]
    if any(number is None for number in numbers) or len(set(numbers)) < len(numbers):
        return "category"
    if len(numbers) < 2 or numbers[0] <= 0:
        return "linear"
    if len(numbers) == 2:
        return "log" if numbers[1] / numbers[0] >= MIN_LOG_RATIO else "linear"
    spreads = [
        max(gaps) / min(gaps)
        for gaps in (
            [two - one for one, two in pairwise(numbers)],
            [math.log(two / one) for one, two in pairwise(numbers)],
        )
    ]
    is_wide = numbers[-1] / numbers[0] >= MIN_LOG_RATIO
    return "log" if spreads[1] < spreads[0] or is_wide else "linear"


def _parse_number(text: str) -> float | None:
    try:
        return finite_or_none(float(text))
    except ValueError:
        return None


def _build_table(
    dials: Sequence[dict[str, Any]], groups: dict[tuple[int, ...], list[float]]
) -> ReportTable:
    table = ReportTable(
        [{"title": dial["name"], "numeric": True, "help": dial["key"]} for dial in dials]
        + make_columns("runs", "mean loss", "lowest", "highest", num_text=0)
    )
    for at, losses in sorted(groups.items()):
        cells = [
            text_cell(dial["values"][index]["text"]) for dial, index in zip(dials, at, strict=True)
        ]
        figures = (fmean(losses), min(losses), max(losses))
        count = {"text": str(len(losses)), "sort": len(losses)}
        table.rows.append([*cells, count, *(number_cell(f, format_loss) for f in figures)])
    return table
