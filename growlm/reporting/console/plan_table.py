"""Print the planner's forecasts as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

MEMORY_COLUMNS = ("weights", "gradients", "optimizer", "activations", "growth_peak", "peak", "disk")

TIME_COLUMNS = ("comm", "waiting", "step")


def print_plan(console: Console, forecast: Mapping[str, Any]) -> None:
    """Print parameters, compute, time and memory of every phase.

    Args:
        console: Console to print to.
        forecast: Result of `Forecast.to_json`, with times.
    """
    phases = forecast["phases"]
    work = _make_table("phase", ("params", "active", "steps", "tokens", "FLOPs", "step", "total"))
    memory = _make_table("memory", [name.replace("_peak", "") for name in MEMORY_COLUMNS])
    for phase in phases:
        seconds = phase["seconds"]
        work.add_row(
            phase["name"],
            f"{phase['total_parameters'] / 1e6:,.2f} M",
            f"{phase['active_parameters'] / 1e6:,.2f} M",
            f"{phase['steps']:,}",
            f"{phase['tokens']:,}",
            f"{phase['flops']:.2e}",
            format_duration(seconds["step"]),
            format_duration(seconds["training"] + seconds["validation"] + seconds["growth"]),
        )
        row = [decimal(phase["memory"][name]) for name in MEMORY_COLUMNS]
        if not phase["fits"]:
            row[MEMORY_COLUMNS.index("peak")] = f"[bold red]{row[MEMORY_COLUMNS.index('peak')]}[/]"
        memory.add_row(phase["name"], *row)
    console.print(work)
    console.print(_describe_shape(phases[0]["model"]), soft_wrap=True)
    console.print()
    console.print(memory)
    limit = decimal(forecast["memory_limit"])
    console.print(
        f"Memory above what the process holds at the start of the run, which may use {limit}",
        soft_wrap=True,
    )


def print_strategy_comparison(console: Console, forecasts: Sequence[Mapping[str, Any]]) -> None:
    """Print memory, communication and step time per device and phase, for each device count and strategy.

    Args:
        console: Console to print to.
        forecasts: Results of `Forecast.to_json`, with times.
    """
    table = _make_table(
        "phase", ("devices", "strategy", "states", "peak", "growth", "sent", *TIME_COLUMNS)
    )
    for index, first in enumerate(forecasts[0]["phases"]):
        for number, forecast in enumerate(forecasts):
            phase = forecast["phases"][index]
            if forecast["strategy"] == "expert" and not phase["model"]["num_experts"]:
                continue  # a dense phase has no experts to distribute
            memory, seconds = phase["memory"], phase["seconds"]
            states = memory["weights"] + memory["gradients"] + memory["optimizer"]
            peak = decimal(memory["peak"])
            table.add_row(
                "" if number else first["name"],
                f"{forecast['devices']:,}",
                "" if forecast["devices"] == 1 else forecast["strategy"],
                decimal(states),
                peak if phase["fits"] else f"[bold red]{peak} ![/]",
                decimal(memory["growth_peak"]),
                decimal(sum(phase["sent"].values())),
                *(format_duration(seconds[name]) for name in ("communication", "waiting", "step")),
            )
    console.print(table)
    limit = decimal(forecasts[0]["memory_limit"])
    console.print(
        "Per device. states: weights, gradients and optimizer state; peak: most memory at once; growth: most "
        "memory while growing; sent: bytes per step; comm: communication time per step; waiting: the part "
        f"of it that computation does not hide. Memory limit: {limit} per device; ! marks phases that exceed it"
    )


def _describe_shape(model: Mapping[str, Any]) -> str:
    """Return the sizes of the first model, each of which can be set alone."""
    shared = ""
    if model["n_kv_heads"] != model["n_heads"]:
        shared = f" ({model['n_kv_heads']} for keys and values)"
    return (
        f"First model: {model['n_layers']} layers, {model['d_model']:,} wide; {model['n_heads']} heads of "
        f"{model['head_dim']} channels{shared}; d_ff {model['d_ff']:,}"
    )


def _make_table(first: str, others: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def format_duration(seconds: float) -> str:
    """Format a duration in a suitable unit: `85 ms`, `4.2 s`, `3 min 20 s`, `7 h 05 min`."""
    if seconds < 0.995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
