"""The planner's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

COLUMNS = ("weights", "gradients", "optimizer", "activations", "growth_peak", "peak", "disk")


def print_plan(console: Console, table: Mapping[str, Any]) -> None:
    """Parameters, work, time and memory of every phase.

    Args:
        console: Where to.
        table: `Forecast.to_json`, with times.
    """
    phases = table["phases"]
    work = _table("phase", ("params", "active", "steps", "tokens", "FLOPs", "step", "in all"))
    memory = _table("memory", [name.replace("_peak", "") for name in COLUMNS])
    for phase in phases:
        seconds = phase["seconds"]
        work.add_row(
            phase["name"],
            f"{phase['total_parameters'] / 1e6:,.2f} M",
            f"{phase['active_parameters'] / 1e6:,.2f} M",
            f"{phase['steps']:,}",
            f"{phase['tokens']:,}",
            f"{phase['flops']:.2e}",
            duration(seconds["step"]),
            duration(seconds["training"] + seconds["validation"] + seconds["growth"]),
        )
        row = [decimal(phase["memory"][name]) for name in COLUMNS]
        if not phase["fits"]:
            row[COLUMNS.index("peak")] = f"[bold red]{row[COLUMNS.index('peak')]}[/]"
        memory.add_row(phase["name"], *row)
    console.print(work)
    console.print()
    console.print(memory)
    console.print(f"The run may take {decimal(table['memory_limit'])} of memory")


def _table(first: str, others: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def duration(seconds: float) -> str:
    """Two figures, in the unit that suits: `85 ms`, `4.2 s`, `3 min 20 s`, `7 h 05 min`."""
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
