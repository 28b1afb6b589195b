"""Build the data of the page of one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from growlm.reporting.html.curves import (
    downsample,
    finite_or_none,
    round_significant,
    smooth_losses,
    smoothing_radius,
)
from growlm.reporting.html.html_tables import build_evaluation_table, build_phase_table
from growlm.reporting.html.lr_curve import build_lr_curve
from growlm.reporting.html.movement_matrices import build_expert_movement
from growlm.reporting.html.phase_bands import build_phase_bands
from growlm.reporting.html.provenance_facts import list_provenance_facts
from growlm.reporting.html.router_load import build_load_table, build_router_load
from growlm.reporting.html.shell_commands import build_run_commands
from growlm.reporting.reading import outcome
from growlm.reporting.reading.failed_growth import FailedGrowth, find_failed_growth
from growlm.reporting.reading.history_reader import COUNTER_FIELDS, HistoryLine
from growlm.reporting.reading.run_files import Run
from growlm.runtime import number_format

MAX_POINTS = 2000
"""Approximate limit on the plotted rows of a history."""
BOUNDARY_ROWS = 60
"""Rows on either side of a boundary that are all plotted."""
ZOOM_STEPS = 30
"""Steps on either side of a boundary in its own plot."""
PLOTTED_FIELDS = ("grad_norm", "tokens_per_second", "mfu")
CHECK_TITLES = {
    "rope": "RoPE integrity",
    "router": "router scaling",
    "symmetry": "symmetry breaking",
    "functional": "functional identity",
    "weights": "weight integrity",
}


def build_run_page(run: Run, title: str | None = None) -> dict[str, Any]:
    """Return everything the page needs, ready for JSON.

    Args:
        run: Run to show.
        title: Title of the page; None for the plan and its result.
    """
    rows = run.history.rows
    losses = [finite_or_none(row["loss"]) for row in rows]
    radius = smoothing_radius(len(rows))
    starts = find_phase_starts(rows)
    smoothed = smooth_losses(losses, radius, starts, [row["global_step"] for row in rows])
    bands = build_phase_bands(run)
    phase_index = {band["name"]: index for index, band in enumerate(bands)}
    plotted = downsample(losses, starts, MAX_POINTS, BOUNDARY_ROWS)
    return {
        "kind": "run",
        "title": title or describe_result(run),
        "subtitle": describe_result(run) if title else run.name,
        "provenance": list_provenance_facts(run),
        "status": run.status,
        "notes": build_notes(run),
        "strip": _headline_figures(run),
        "smoothedOver": radius,
        "rows": {
            **counter_series(rows, plotted),
            "phase": [phase_index[str(rows[index]["phase"])] for index in plotted],
            "phaseStep": [rows[index].get("step") for index in plotted],
            "loss": [round_significant(losses[index]) for index in plotted],
            "smooth": [round_significant(smoothed[index]) for index in plotted],
            **_plotted_series(rows, plotted),
        },
        "validation": {
            **counter_series(run.history.validations),
            "loss": [
                round_significant(finite_or_none(line["val_loss"]))
                for line in run.history.validations
            ],
            "sets": [
                {
                    "name": name,
                    "loss": [
                        round_significant(outcome.set_measure(line, "evaluation", name))
                        for line in run.history.validations
                    ],
                }
                for name in outcome.list_evaluation_sets(run)
            ],
        },
        "bands": bands,
        "lr": build_lr_curve(run),
        "boundaries": [_boundary_data(run, boundary) for boundary in run.boundaries],
        "router": (router := build_router_load(run)),
        "routerTable": build_load_table(router).to_json(),
        "movement": build_expert_movement(run),
        "phases": build_phase_table(run).to_json(),
        "evaluation": None
        if (evaluation := build_evaluation_table(run)) is None
        else evaluation.to_json(),
        "sizes": _phase_sizes(run),
        "samples": _phase_samples(run),
        "warnings": [
            {"where": f"{line.get('phase')} step {line.get('step')}", "text": str(line.get("text"))}
            for line in run.history.warnings
        ],
        "commands": build_run_commands(run),
        "config": run.config_text,
    }


def find_phase_starts(rows: Sequence[HistoryLine]) -> list[int]:
    """Return the index of each phase's first row."""
    return [i for i, row in enumerate(rows) if not i or row["phase"] != rows[i - 1]["phase"]]


def counter_series(
    lines: Sequence[HistoryLine], drawn: Sequence[int] | None = None
) -> dict[str, Any]:
    """Return step, tokens, FLOPs and seconds of the selected lines.

    Args:
        lines: History lines.
        drawn: Indices of the lines to use; None for all.
    """
    chosen = lines if drawn is None else [lines[index] for index in drawn]
    return {
        axis: [round_significant(finite_or_none(line[key]), 7) for line in chosen]
        for axis, key in COUNTER_FIELDS.items()
    }


def boundary_position(run: Run, boundary: dict[str, Any]) -> dict[str, Any] | None:
    """Return the position of a boundary on each axis: the last row of the phase before it."""
    before = [row for row in run.history.rows if row["phase"] == boundary.get("from")]
    return {axis: before[-1][key] for axis, key in COUNTER_FIELDS.items()} if before else None


def build_notes(run: Run) -> list[str]:
    """Return the notes shown above the results: reuse, baseline, status, unreadable lines and NaN losses."""
    notes = []
    reused = (run.summary or {}).get("reused")
    if isinstance(reused, dict):
        names = ", ".join(str(name) for name in reused.get("phases") or [])
        saved = number_format.format_seconds(finite_or_none(reused.get("seconds")))
        notes.append(f"Phases {names} reused from {reused.get('run')}, {saved} saved.")
    if run.baseline:
        notes.append(
            f"A baseline ({run.baseline.get('kind')}) of the plan {run.baseline.get('of')}, "
            f"with as many {run.baseline.get('equal')}."
        )
    if (failed := find_failed_growth(run)) is not None:
        notes += _describe_failure(run, failed)
    elif run.status != "finished":
        notes.append(
            f"This run is {run.status}: what it had written when this report was made is shown."
        )
    if run.message:
        notes.append(run.message)
    if run.history.num_unreadable:
        lines = "line" if run.history.num_unreadable == 1 else "lines"
        notes.append(f"{run.history.num_unreadable} {lines} of the history could not be read.")
    if num_not_finite := sum(finite_or_none(row["loss"]) is None for row in run.history.rows):
        notes.append(
            f"The loss of {num_not_finite} logged steps is not finite; these are gaps in the plots."
        )
    return notes


def _describe_failure(run: Run, failed: FailedGrowth) -> list[str]:
    """Return notes on which growth stopped the run and why, and on what to do."""
    at = boundary_position(run, failed.boundary)
    where = f" after step {number_format.format_count(at['step'])}" if at else ""
    checks = "; ".join(
        f"{CHECK_TITLES.get(name, name)}: {summary}" for name, summary in failed.checks.items()
    )
    name = outcome.format_boundary_name(failed.boundary)
    return [
        f"The growth {name} failed its checks{where}, so the run stopped there. {checks}.",
        f"{failed.advice} The command is under Commands.",
    ]


def describe_result(run: Run) -> str:
    """Say in one line what the run did and how it ended."""
    sizes = [phase.get("total_parameters") for phase in outcome.collect_phase_metrics(run)]
    failed = [boundary for boundary in run.boundaries if boundary.get("passed") is False]
    words = []
    if sizes:
        ends = [number_format.format_large_count(size) for size in (sizes[0], sizes[-1])]
        num_growths = len(run.boundaries) - len(failed)
        grown = f" in {num_growths} growth{'s' if num_growths > 1 else ''}" if num_growths else ""
        words.append(f"{' → '.join(dict.fromkeys(ends))} parameters{grown}")
    if (loss := outcome.final_val_loss(run)) is not None:
        words.append(f"validation loss {number_format.format_loss(loss)}")
    for boundary in failed:
        at = boundary_position(run, boundary)
        where = f" after step {number_format.format_count(at['step'])}" if at else ""
        words.append(f"the growth {outcome.format_boundary_name(boundary)} failed{where}")
    for boundary in run.boundaries:
        if _has_lost_by_design(boundary):
            jump = number_format.format_jump(finite_or_none(boundary.get("jump")))
            name = outcome.format_boundary_name(boundary)
            words.append(f"the growth {name} was not lossless, jump {jump}")
    return f"{run.plan_name}: {', '.join(words)}" if words else run.plan_name


def _has_lost_by_design(boundary: dict[str, Any]) -> bool:
    """Return whether a growth that does not claim to keep the function changed it."""
    functional = (boundary.get("checks") or {}).get("functional")
    status = functional.get("status") if isinstance(functional, dict) else functional
    is_lossless = boundary.get("lossless") is not False
    return not is_lossless and status == "finding" and boundary.get("passed") is not False


def _headline_figures(run: Run) -> list[dict[str, str]]:
    phases = outcome.collect_phase_metrics(run)
    sizes = [phase.get("total_parameters") for phase in phases]
    grown = (
        f"{number_format.format_large_count(sizes[0])} → {number_format.format_large_count(sizes[-1])}"
        if sizes
        else number_format.MISSING
    )
    values = [
        (
            "validation loss",
            number_format.format_loss(outcome.final_val_loss(run)),
            _format_bits_per_byte(run),
        ),
        ("training loss", number_format.format_loss(outcome.final_loss(run)), "the last"),
        (
            "parameters",
            grown if len(sizes) != 1 else number_format.format_large_count(sizes[0]),
            "first → last",
        ),
        ("largest jump", number_format.format_jump(outcome.largest_jump(run)), "of the loss"),
        ("tokens", number_format.format_large_count(outcome.total_cost(run, "tokens")), ""),
        ("compute", number_format.format_flops(outcome.total_cost(run, "flops")), ""),
        ("time", number_format.format_seconds(outcome.total_cost(run, "seconds")), ""),
    ]
    return [{"label": label, "value": value, "note": note} for label, value, note in values]


def _format_bits_per_byte(run: Run) -> str:
    bits = outcome.final_bits_per_byte(run)
    return (
        "the last" if bits is None else f"the last; {number_format.format_loss(bits)} bits per byte"
    )


def _plotted_series(rows: Sequence[HistoryLine], plotted: Sequence[int]) -> dict[str, Any]:
    return {
        key: [round_significant(finite_or_none(rows[index].get(key)), 4) for index in plotted]
        for key in PLOTTED_FIELDS
        if any(finite_or_none(row.get(key)) is not None for row in rows)
    }


def _boundary_data(run: Run, boundary: dict[str, Any]) -> dict[str, Any]:
    checks = boundary.get("checks") if isinstance(boundary.get("checks"), dict) else {}
    noise = boundary.get("noise") if isinstance(boundary.get("noise"), dict) else {}
    facts = [
        ("probe loss", _format_loss_pair(boundary.get("loss_before"), boundary.get("loss_after"))),
        ("logits moved by", _format_magnitude(boundary.get("max_logit_difference"))),
        ("tolerance", _format_magnitude(boundary.get("tolerance"))),
        ("optimizer state", str(boundary.get("optimizer_state", number_format.MISSING))),
        ("took", number_format.format_seconds(finite_or_none(boundary.get("seconds")))),
    ]
    for name, measures in (boundary.get("evaluation") or {}).items():
        pair = _format_loss_pair(measures.get("loss_before"), measures.get("loss_after"))
        facts.insert(-3, (f"{name} loss", pair))
    if noise:
        sigmas = (
            _format_magnitude(noise.get("sigma_min")),
            _format_magnitude(noise.get("sigma_max")),
        )
        facts.append(("noise", f"{noise.get('matrices')} matrices, σ {sigmas[0]} to {sigmas[1]}"))
    described = [_check_data(name, check) for name, check in (checks or {}).items()]
    return {
        "name": outcome.format_boundary_name(boundary),
        "grew": outcome.describe_growth(boundary, run.config),
        "lines": [str(line) for line in boundary.get("growth") or []],
        "to": str(boundary.get("to")),
        "at": boundary_position(run, boundary),
        "planned": _planned_size(run, boundary.get("to")),
        "tolerance": round_significant(finite_or_none(boundary.get("tolerance")), 3),
        "jump": number_format.format_jump(finite_or_none(boundary.get("jump"))),
        "passed": boundary.get("passed") is not False,
        "verdict": _verdict(boundary, described),
        "lossless": bool(boundary.get("lossless")),
        "facts": [{"label": label, "value": value} for label, value in facts],
        "checks": described,
        "drift": _layer_differences(checks or {}),
        "zoom": _boundary_zoom(run, boundary),
    }


def _verdict(boundary: dict[str, Any], checks: Sequence[dict[str, str]]) -> dict[str, str]:
    """Return the status of a growth, and the same in words.

    Args:
        boundary: Record of the growth.
        checks: Its checks as `_check_data` describes them.
    """
    if boundary.get("passed") is False:
        return {"status": "failed", "text": "checks failed"}
    if _has_lost_by_design(boundary):
        return {"status": "finding", "text": "not lossless, as its settings say"}
    if any(check["status"] == "finding" for check in checks):
        return {"status": "finding", "text": "checks passed, with a finding"}
    return {"status": "passed", "text": "checks passed"}


def _planned_size(run: Run, phase: object) -> str | None:
    """Return the parameters of a phase according to plan.json."""
    for planned in run.plan:
        size = finite_or_none(planned.get("total_parameters"))
        if planned.get("name") == phase and size is not None:
            return number_format.format_large_count(size)
    return None


def _check_data(name: str, check: Any) -> dict[str, str]:
    """Return the data of a check, from boundaries.json or, with the status alone, from the history."""
    known = check if isinstance(check, dict) else {"status": check}
    return {
        "name": CHECK_TITLES.get(name, name),
        "status": str(known.get("status")),
        "summary": str(known.get("summary") or ""),
    }


def _layer_differences(checks: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the differences per layer from the functional identity check (check 4)."""
    functional = checks.get("functional")
    measured = functional.get("figures", {}) if isinstance(functional, dict) else {}
    layers = [layer for layer in measured.get("layers") or [] if isinstance(layer, dict)]
    return [
        {
            "layer": layer.get("layer"),
            "old": layer.get("old_layer"),
            "largest": round_significant(finite_or_none(layer.get("max_difference")), 3),
            "mean": round_significant(finite_or_none(layer.get("mean_difference")), 3),
        }
        for layer in layers
    ]


def _boundary_zoom(run: Run, boundary: dict[str, Any]) -> dict[str, Any]:
    """Return the losses of the steps around a growth, by the steps since it: 0 is the last one before."""
    names = (boundary.get("from"), boundary.get("to"))
    at = boundary_position(run, boundary)

    def find_near(lines: Sequence[HistoryLine]) -> list[HistoryLine]:
        return [
            line
            for line in lines
            if at is not None
            and line["phase"] in names
            and abs(line["global_step"] - at["step"]) <= ZOOM_STEPS
        ]

    rows, validations = find_near(run.history.rows), find_near(run.history.validations)
    start = 0 if at is None else at["step"]
    return {
        "step": [row["global_step"] - start for row in rows],
        "loss": [round_significant(finite_or_none(row["loss"])) for row in rows],
        "validationStep": [line["global_step"] - start for line in validations],
        "validation": [round_significant(finite_or_none(line["val_loss"])) for line in validations],
        "probe": [
            round_significant(finite_or_none(boundary.get(key)), 9)
            for key in ("loss_before", "loss_after")
        ],
    }


def _phase_sizes(run: Run) -> list[dict[str, Any]]:
    return [
        {
            "phase": str(phase.get("name")),
            "active": finite_or_none(phase.get("active_parameters")),
            "total": finite_or_none(phase.get("total_parameters")),
            "memory": finite_or_none(phase.get("peak_memory_bytes")),
        }
        for phase in outcome.collect_phase_metrics(run)
    ]


def _phase_samples(run: Run) -> list[dict[str, str]]:
    if run.summary is not None:
        lines = [phase | {"phase": phase.get("name")} for phase in run.summary.get("phases", [])]
    else:
        lines = run.history.finished_phases
    return [
        {"phase": str(line.get("phase")), "text": str(line["sample"])}
        for line in lines
        if line.get("sample")
    ]


def _format_loss_pair(before: Any, after: Any) -> str:
    losses = (finite_or_none(value) for value in (before, after))
    return " → ".join(map(number_format.format_probe_loss, losses))


def _format_magnitude(value: Any) -> str:
    return number_format.format_magnitude(finite_or_none(value))
