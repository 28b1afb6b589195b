"""Compute the results of finished and unfinished runs: metrics per phase, losses, jumps and costs."""

from __future__ import annotations

from typing import Any

from growlm.reporting.html.curves import finite_or_none
from growlm.reporting.reading.run_files import Run


def collect_phase_metrics(run: Run) -> list[dict[str, Any]]:
    """Return metrics per phase, from summary.json or, for an unfinished run, from its plan and history."""
    if run.summary is not None:
        phases = [phase for phase in run.summary.get("phases", []) if isinstance(phase, dict)]
        steps = [_planned_steps(run, phase.get("name")) for phase in phases]
        return [phase | {"planned": planned} for phase, planned in zip(phases, steps, strict=True)]
    started = {line["phase"] for line in [*run.history.rows, *run.history.validations]}
    return [
        _metrics_from_history(run, planned)
        for planned in run.plan
        if planned.get("name") in started
    ]


def _planned_steps(run: Run, name: object) -> int | None:
    return next((phase.get("steps") for phase in run.plan if phase.get("name") == name), None)


def _metrics_from_history(run: Run, planned: dict[str, Any]) -> dict[str, Any]:
    name = planned.get("name")
    rows = [row for row in run.history.rows if row["phase"] == name]
    validations = [line for line in run.history.validations if line["phase"] == name]
    lines = sorted([*rows, *validations], key=lambda line: (line["global_step"], line["time_s"]))
    speeds = [s for s in (finite_or_none(row.get("tokens_per_second")) for row in rows) if s]
    first, last = lines[0], lines[-1]
    model = planned.get("model") if isinstance(planned.get("model"), dict) else {}
    return {
        "name": name,
        "total_parameters": planned.get("total_parameters"),
        "active_parameters": planned.get("active_parameters"),
        "idle_experts": _num_idle_experts(model or {}),
        "steps": last.get("step"),
        "planned": planned.get("steps"),
        "tokens": last["tokens"] - _counter_before_phase(run, name, "tokens"),
        "flops": last["flops"] - _counter_before_phase(run, name, "flops"),
        "first_loss": rows[0]["loss"] if rows else None,
        "final_loss": rows[-1]["loss"] if rows else None,
        "initial_val_loss": validations[0]["val_loss"] if validations else None,
        "val_loss": validations[-1]["val_loss"] if len(validations) > 1 else None,
        "initial_evaluation": (validations[0].get("evaluation") if validations else None) or {},
        "evaluation": (validations[-1].get("evaluation") if len(validations) > 1 else None) or {},
        "wall_time_s": last["time_s"] - first["time_s"],
        "tokens_per_second": sum(speeds) / len(speeds) if speeds else None,
        "peak_memory_bytes": None,
    }


def _num_idle_experts(model: dict[str, Any]) -> int:
    experts = model.get("num_experts") or 0
    return experts - (model.get("top_k") or 0) if experts else 0


def _counter_before_phase(run: Run, name: object, counter: str) -> int:
    """Return the value of a counter when a phase started."""
    value = 0
    for row in run.history.rows:
        if row["phase"] == name:
            break
        value = row[counter]
    return value


def final_loss(run: Run) -> float | None:
    """Return the training loss of the last row; None if there is none or it is not finite."""
    return finite_or_none(run.history.rows[-1]["loss"]) if run.history.rows else None


def final_val_loss(run: Run) -> float | None:
    """Return the last validation loss; None if there is none or it is not finite."""
    return (
        finite_or_none(run.history.validations[-1]["val_loss"]) if run.history.validations else None
    )


def list_evaluation_sets(run: Run) -> list[str]:
    """Return the names of the evaluation sets that a run measured, besides its validation text."""
    lines = run.history.validations
    return list(dict.fromkeys(name for line in lines for name in line.get("evaluation") or {}))


def set_measure(
    record: dict[str, Any], field: str, name: str, measure: str = "loss"
) -> float | None:
    """Return what a phase or a validation measured of an evaluation set; None if it is not there.

    Args:
        record: Metrics of the phase, or line of the validation.
        field: `evaluation`, or of a phase `initial_evaluation`.
        name: Name of the set.
        measure: `loss` or `bits_per_byte`.
    """
    return finite_or_none((record.get(field) or {}).get(name, {}).get(measure))


def final_bits_per_byte(run: Run) -> float | None:
    """Return the last validation loss in bits per byte of text; None for older runs, which did not record it."""
    lines = run.history.validations
    return finite_or_none(lines[-1].get("val_bits_per_byte")) if lines else None


def total_cost(run: Run, axis: str) -> float | None:
    """Return the total cost of a run on an axis: `tokens`, `flops`, `seconds` or `step`."""
    summary = run.summary or {}
    key = "wall_time_s" if axis == "seconds" else axis
    if axis != "step" and finite_or_none(summary.get(key)) is not None:
        return finite_or_none(summary[key])
    last = run.history.last_counters()
    return (
        finite_or_none(last.get({"seconds": "time_s", "step": "global_step"}.get(axis, axis)))
        if run.history.rows
        else None
    )


def reused_seconds(run: Run) -> float:
    """Return the seconds of training that were reused from another run."""
    reused = (run.summary or {}).get("reused")
    return (finite_or_none(reused.get("seconds")) or 0.0) if isinstance(reused, dict) else 0.0


def largest_jump(run: Run) -> float | None:
    """Return the boundary jump with the largest absolute value."""
    jumps = [finite_or_none(boundary.get("jump")) for boundary in run.boundaries]
    return max((jump for jump in jumps if jump is not None), key=abs, default=None)


def format_boundary_name(boundary: dict[str, Any]) -> str:
    """Return the name of a boundary, such as 'dense → moe'."""
    return f"{boundary.get('from')} → {boundary.get('to')}"


def describe_growth(boundary: dict[str, Any], config: dict[str, Any]) -> str:
    """Describe a growth in a few words, such as '8 experts' or '×1.5 wider, +2 layers'."""
    if (summary := boundary.get("summary")) is not None:
        return str(summary)
    # Runs of earlier versions have the settings only; the operators that summarize them load torch.
    from growlm.growth.operators.optional_methods import summarize_operator_dicts

    return summarize_operator_dicts(
        boundary.get("operators") or _configured_operators(boundary, config)
    )


def _configured_operators(boundary: dict[str, Any], config: dict[str, Any]) -> list[Any]:
    phase = (config.get("phases") or {}).get(boundary.get("to"))
    return list(phase.get("grow") or []) if isinstance(phase, dict) else []
