"""Print the planner's forecasts as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from growlm.reporting.console.console_layout import Cell, print_indented, print_table
from growlm.runtime.number_format import (
    format_bytes,
    format_count,
    format_flops,
    format_large_count,
    format_seconds,
)

MEMORY_COLUMNS = ("weights", "gradients", "optimizer", "activations", "growth_peak", "peak", "disk")

TIME_COLUMNS = ("comm", "waiting", "step")


def print_plan(console: Console, forecast: Mapping[str, Any]) -> None:
    """Print parameters, compute, time and memory of every phase, and whether the plan fits.

    Args:
        console: Console to print to.
        forecast: Result of `Forecast.to_json`, with times.
    """
    phases = forecast["phases"]
    work: list[list[Cell]] = []
    memory: list[list[Cell]] = []
    for phase in phases:
        seconds = phase["seconds"]
        work.append(
            [
                phase["name"],
                format_large_count(phase["total_parameters"]),
                format_large_count(phase["active_parameters"]),
                format_count(phase["steps"]),
                format_large_count(phase["tokens"]),
                format_flops(phase["flops"]),
                format_seconds(seconds["step"]),
                format_seconds(seconds["training"] + seconds["validation"] + seconds["growth"]),
            ]
        )
        sizes = {name: Text(format_bytes(phase["memory"][name])) for name in MEMORY_COLUMNS}
        if not phase["fits"]:
            sizes["peak"].stylize("bold red")
        memory.append([phase["name"], *sizes.values()])
    titles = ("phase", "params", "active", "steps", "tokens", "compute", "a step", "time")
    print_table(console, titles, work)
    print_indented(console, _describe_shape(phases[0]["model"]), 0)
    console.print()
    print_table(
        console, ("memory", *(name.replace("_peak", "") for name in MEMORY_COLUMNS)), memory
    )
    print_indented(console, _describe_need(forecast), 0)


def _describe_need(forecast: Mapping[str, Any]) -> Text:
    """Return how much memory there is, and how much the plan needs."""
    peak = max(phase["memory"]["peak"] for phase in forecast["phases"])
    where = "" if forecast.get("devices", 1) == 1 else " on each device"
    style = "bold green" if all(phase["fits"] for phase in forecast["phases"]) else "bold red"
    return Text.assemble(
        f"{format_bytes(forecast['memory_limit'])} of memory are available{where}; this plan needs ",
        (format_bytes(peak), style),
        " (above what the process holds at its start)",
    )


def print_strategy_comparison(console: Console, forecasts: Sequence[Mapping[str, Any]]) -> None:
    """Print memory, communication and step time per device and phase, for each device count and strategy.

    Args:
        console: Console to print to.
        forecasts: Results of `Forecast.to_json`, with times.
    """
    rows: list[list[Cell]] = []
    for index, first in enumerate(forecasts[0]["phases"]):
        for number, forecast in enumerate(forecasts):
            phase = forecast["phases"][index]
            if forecast["strategy"] == "expert" and not phase["model"]["num_experts"]:
                continue  # a dense phase has no experts to distribute
            memory, seconds = phase["memory"], phase["seconds"]
            states = memory["weights"] + memory["gradients"] + memory["optimizer"]
            peak = format_bytes(memory["peak"])
            rows.append(
                [
                    "" if number else first["name"],
                    format_count(forecast["devices"]),
                    "" if forecast["devices"] == 1 else forecast["strategy"],
                    format_bytes(states),
                    peak if phase["fits"] else Text(f"{peak} !", style="bold red"),
                    format_bytes(memory["growth_peak"]),
                    format_bytes(sum(phase["sent"].values())),
                    *(format_seconds(seconds[key]) for key in ("communication", "waiting", "step")),
                ]
            )
    titles = ("phase", "devices", "strategy", "states", "peak", "growth", "sent", *TIME_COLUMNS)
    print_table(console, titles, rows, num_keys=3)
    limit = format_bytes(forecasts[0]["memory_limit"])
    print_indented(
        console,
        "Per device. states: weights, gradients and optimizer state; peak: most memory at once; growth: most "
        "memory while growing; sent: bytes per step; comm: communication time per step; waiting: the part "
        f"of it that computation does not hide. {limit} of memory are available per device; ! marks phases "
        "that need more",
        0,
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
