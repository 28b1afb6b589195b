"""What the page of one run shows, as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from growlm.reporting.html import number_format as figures
from growlm.reporting.html.curves import finite, reach, short, smooth, thin
from growlm.reporting.html.html_tables import phase_table
from growlm.reporting.html.router_load import router_load
from growlm.reporting.html.shell_commands import commands
from growlm.reporting.reading import outcome
from growlm.reporting.reading.history_reader import COUNTERS, Line
from growlm.reporting.reading.run_files import Run

POINTS = 2000
"""Rows of a long history that are drawn, about."""
ZOOM = 60
"""Rows on either side of a boundary in its zoom."""
MEASURES = ("lr", "grad_norm", "tokens_per_second", "mfu")
CHECKS = {
    "rope": "RoPE integrity",
    "router": "router scaling",
    "symmetry": "symmetry breaking",
    "functional": "functional identity",
    "weights": "weight integrity",
}


def run_page(run: Run, title: str) -> dict[str, Any]:
    """Everything the page needs, ready for JSON."""
    rows = run.history.rows
    losses = [finite(row["loss"]) for row in rows]
    smoothed_over = reach(len(rows))
    starts = phase_starts(rows)
    smoothed = smooth(losses, smoothed_over, starts)
    drawn = thin(losses, starts, POINTS, ZOOM)
    return {
        "kind": "run",
        "title": title,
        "subtitle": _circumstances(run),
        "status": run.status,
        "notes": notes(run),
        "strip": _strip(run),
        "smoothedOver": smoothed_over,
        "rows": {
            **counters(rows, drawn),
            "loss": [short(losses[index]) for index in drawn],
            "smooth": [short(smoothed[index]) for index in drawn],
            **_measures(rows, drawn),
        },
        "validation": {
            **counters(run.history.validations),
            "loss": [short(finite(line["val_loss"])) for line in run.history.validations],
        },
        "boundaries": [_boundary(run, boundary) for boundary in run.boundaries],
        "router": router_load(run),
        "phases": phase_table(run).to_json(),
        "sizes": _sizes(run),
        "samples": _samples(run),
        "warnings": [
            {"where": f"{line.get('phase')} step {line.get('step')}", "text": str(line.get("text"))}
            for line in run.history.warnings
        ],
        "commands": commands(run),
        "config": run.config_text,
    }


def phase_starts(rows: Sequence[Line]) -> list[int]:
    """Index of each phase's first row."""
    return [i for i, row in enumerate(rows) if not i or row["phase"] != rows[i - 1]["phase"]]


def counters(lines: Sequence[Line], drawn: Sequence[int] | None = None) -> dict[str, Any]:
    """Step, tokens, FLOPs and seconds of some lines."""
    chosen = lines if drawn is None else [lines[index] for index in drawn]
    return {
        axis: [short(finite(line[key]), 7) for line in chosen] for axis, key in COUNTERS.items()
    }


def place(run: Run, boundary: dict[str, Any]) -> dict[str, Any] | None:
    """Where a boundary is on each axis: at the last row of the phase before it."""
    before = [row for row in run.history.rows if row["phase"] == boundary.get("from")]
    return {axis: before[-1][key] for axis, key in COUNTERS.items()} if before else None


def notes(run: Run) -> list[str]:
    """What a reader should know before the figures."""
    found = []
    reused = (run.summary or {}).get("reused")
    if isinstance(reused, dict):
        names = ", ".join(str(name) for name in reused.get("phases") or [])
        saved = figures.seconds(finite(reused.get("seconds")))
        found.append(f"Phases {names} reused from {reused.get('run')}, {saved} saved.")
    if run.baseline:
        found.append(
            f"A baseline ({run.baseline.get('kind')}) of the plan {run.baseline.get('of')}, "
            f"with as many {run.baseline.get('equal')}."
        )
    if run.status != "finished":
        found.append(
            f"This run is {run.status}: what it had written when this report was made is shown."
        )
    if run.message:
        found.append(run.message)
    if run.history.unreadable:
        lines = "line" if run.history.unreadable == 1 else "lines"
        found.append(f"{run.history.unreadable} {lines} of the history could not be read.")
    if lost := sum(finite(row["loss"]) is None for row in run.history.rows):
        found.append(f"The loss of {lost} logged steps is not finite; these are gaps in the plots.")
    return found


def _circumstances(run: Run) -> str:
    told = [(run.summary or {}).get(key) for key in ("device", "precision")]
    known = ", ".join(str(word) for word in told if word)
    return f"A growlm run on {known}" if known else "A growlm run"


def _strip(run: Run) -> list[dict[str, str]]:
    phases = outcome.phases(run)
    sizes = [phase.get("total_parameters") for phase in phases]
    grown = f"{figures.scaled(sizes[0])} → {figures.scaled(sizes[-1])}" if sizes else figures.NONE
    values = [
        ("plan", run.plan_name, f"seed {run.config.get('seed', '?')}"),
        ("validation loss", figures.loss(outcome.final_val_loss(run)), _in_bits(run)),
        ("training loss", figures.loss(outcome.final_loss(run)), "the last"),
        ("parameters", grown if len(sizes) != 1 else figures.scaled(sizes[0]), "first → last"),
        ("largest |jump|", figures.jump(outcome.largest_jump(run)).lstrip("+-"), "of the loss"),
        ("tokens", figures.scaled(outcome.cost(run, "tokens")), ""),
        ("compute", figures.scaled(outcome.cost(run, "flops"), "FLOP"), ""),
        ("time", figures.seconds(outcome.cost(run, "seconds")), ""),
    ]
    return [{"label": label, "value": value, "note": note} for label, value, note in values]


def _in_bits(run: Run) -> str:
    bits = outcome.final_bits_per_byte(run)
    return "the last" if bits is None else f"the last; {bits:.4f} bits per byte"


def _measures(rows: Sequence[Line], drawn: Sequence[int]) -> dict[str, Any]:
    return {
        key: [short(finite(rows[index].get(key)), 4) for index in drawn]
        for key in MEASURES
        if any(finite(row.get(key)) is not None for row in rows)
    }


def _boundary(run: Run, boundary: dict[str, Any]) -> dict[str, Any]:
    checks = boundary.get("checks") if isinstance(boundary.get("checks"), dict) else {}
    noise = boundary.get("noise") if isinstance(boundary.get("noise"), dict) else {}
    facts = [
        ("probe loss", _pair(boundary.get("loss_before"), boundary.get("loss_after"))),
        ("logits moved by", _exponent(boundary.get("max_logit_difference"))),
        ("tolerance", _exponent(boundary.get("tolerance"))),
        ("optimizer state", str(boundary.get("optimizer_state", figures.NONE))),
        ("took", figures.seconds(finite(boundary.get("seconds")))),
    ]
    if noise:
        sigmas = (_exponent(noise.get("sigma_min")), _exponent(noise.get("sigma_max")))
        facts.append(("noise", f"{noise.get('matrices')} matrices, σ {sigmas[0]} to {sigmas[1]}"))
    return {
        "name": outcome.boundary_name(boundary),
        "grew": outcome.what_grew(boundary, run.config),
        "lines": [str(line) for line in boundary.get("growth") or []],
        "at": place(run, boundary),
        "jump": figures.jump(finite(boundary.get("jump"))),
        "passed": boundary.get("passed") is not False,
        "lossless": bool(boundary.get("lossless")),
        "facts": [{"label": label, "value": value} for label, value in facts],
        "checks": [_check(name, check) for name, check in (checks or {}).items()],
        "drift": _drift(checks or {}),
        "zoom": _zoom(run, boundary),
    }


def _check(name: str, check: Any) -> dict[str, str]:
    """From boundaries.json; the history knows only the status."""
    known = check if isinstance(check, dict) else {"status": check}
    return {
        "name": CHECKS.get(name, name),
        "status": str(known.get("status")),
        "summary": str(known.get("summary") or ""),
    }


def _drift(checks: dict[str, Any]) -> list[dict[str, Any]]:
    """Check 4, layer by layer."""
    functional = checks.get("functional")
    found = functional.get("figures", {}) if isinstance(functional, dict) else {}
    layers = [layer for layer in found.get("layers") or [] if isinstance(layer, dict)]
    return [
        {
            "layer": layer.get("layer"),
            "old": layer.get("old_layer"),
            "largest": short(finite(layer.get("max_difference")), 3),
            "mean": short(finite(layer.get("mean_difference")), 3),
        }
        for layer in layers
    ]


def _zoom(run: Run, boundary: dict[str, Any]) -> dict[str, Any]:
    names = (boundary.get("from"), boundary.get("to"))
    before, after = ([r for r in run.history.rows if r["phase"] == name] for name in names)
    rows = before[-ZOOM:] + after[:ZOOM]
    steps = [row["global_step"] for row in rows]
    near = [
        line
        for line in run.history.validations
        if line["phase"] in names and steps and steps[0] <= line["global_step"] <= steps[-1]
    ]
    return {
        "step": steps,
        "loss": [short(finite(row["loss"])) for row in rows],
        "break": len(before[-ZOOM:]),
        "validationStep": [line["global_step"] for line in near],
        "validation": [short(finite(line["val_loss"])) for line in near],
    }


def _sizes(run: Run) -> list[dict[str, Any]]:
    return [
        {
            "phase": str(phase.get("name")),
            "active": finite(phase.get("active_parameters")),
            "total": finite(phase.get("total_parameters")),
            "memory": finite(phase.get("peak_memory_bytes")),
        }
        for phase in outcome.phases(run)
    ]


def _samples(run: Run) -> list[dict[str, str]]:
    if run.summary is not None:
        lines = [phase | {"phase": phase.get("name")} for phase in run.summary.get("phases", [])]
    else:
        lines = run.history.finished
    return [
        {"phase": str(line.get("phase")), "text": str(line["sample"])}
        for line in lines
        if line.get("sample")
    ]


def _pair(before: Any, after: Any) -> str:
    shown = [finite(value) for value in (before, after)]
    return " → ".join(figures.NONE if value is None else f"{value:.6f}" for value in shown)


def _exponent(value: Any) -> str:
    known = finite(value)
    return figures.NONE if known is None else f"{known:.1e}"
