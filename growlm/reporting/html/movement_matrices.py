"""Build the matrices of how tokens moved between experts over each growth."""

from __future__ import annotations

from typing import Any

from growlm.reporting.html.html_tables import ReportTable, make_columns, number_cell, text_cell
from growlm.reporting.reading import outcome
from growlm.reporting.reading.run_files import Run
from growlm.runtime.number_format import format_count, format_share


def build_expert_movement(run: Run) -> dict[str, Any] | None:
    """Return the matrices of a run's growths; None for a run without experts, or of an earlier version.

    Returns:
        `growths`: for each growth `name`, what `grew`, the numbers of `old` and `new` experts (1 for a dense
        layer), and `layers`, each with its `layer`, `oldLayer` (None for an inserted one), whether that
        `hasExperts`, and `shares` as [old expert, new expert, share of the old expert's choices]. `table`: a line
        for each layer.
    """
    table = ReportTable(
        make_columns(
            "growth",
            "layer",
            "from",
            "choices of the probe",
            "stayed",
            "most frequent move",
            num_text=3,
            stayed="choices of a copy of an expert that the token used before",
        )
    )
    growths = []
    for boundary in run.boundaries:
        movement = boundary.get("expert_movement")
        if not movement or not movement["layers"]:
            continue
        name = outcome.format_boundary_name(boundary)
        num_old, num_new = movement["experts"]
        layers = []
        for layer in movement["layers"]:
            layers.append(_layer_shares(layer))
            table.rows.append([text_cell(name), *_table_cells(layer, num_old)])
        growths.append(
            {
                "name": name,
                "grew": outcome.describe_growth(boundary, run.config),
                "old": num_old,
                "new": num_new,
                "layers": layers,
            }
        )
    return {"growths": growths, "table": table.to_json()} if growths else None


def _layer_shares(layer: dict[str, Any]) -> dict[str, Any]:
    totals: dict[int, int] = {}
    for old, _, count in layer["moves"]:
        totals[old] = totals.get(old, 0) + count
    return {
        "layer": layer["layer"],
        "oldLayer": layer["old_layer"],
        "hasExperts": layer["stayed"] is not None,
        "shares": [
            [old, new, round(count / totals[old], 4)] for old, new, count in layer["moves"] if count
        ],
    }


def _table_cells(layer: dict[str, Any], num_old: int) -> list[dict[str, Any]]:
    choices, stayed = layer["choices"], layer["stayed"]
    is_new = layer["old_layer"] is None
    source = "inserted" if is_new else f"layer {layer['old_layer']}"
    share = None if stayed is None or not choices else stayed / choices
    old, new, count = max(layer["moves"], key=lambda move: move[2], default=(0, 0, 0))
    where = f"{old} → {new}" if stayed is not None else f"to {new}"
    return [
        text_cell(layer["layer"]),
        text_cell(source if is_new or stayed is not None or num_old > 1 else f"{source}, dense"),
        number_cell(choices, format_count),
        number_cell(share, format_share),
        {"text": f"{where}: {format_share(count / choices if choices else None)}", "sort": count},
    ]
