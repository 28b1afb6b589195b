"""The planner's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

COLUMNS = ("weights", "gradients", "optimizer", "activations", "growth_peak", "peak", "disk")


def print_plan(console: Console, phases: Sequence[Mapping[str, Any]], limit: int) -> None:
    """Parameters, work and memory of every phase.

    Args:
        console: Where to.
        phases: As in `plan.json`.
        limit: Bytes that the run may take.
    """
    work = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    work.add_column("phase")
    for name in ("params", "active", "steps", "tokens", "FLOPs"):
        work.add_column(name, justify="right", no_wrap=True)
    memory = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    memory.add_column("memory")
    for name in COLUMNS:
        memory.add_column(name.replace("_peak", ""), justify="right", no_wrap=True)
    for phase in phases:
        work.add_row(
            phase["name"],
            f"{phase['total_parameters'] / 1e6:,.2f} M",
            f"{phase['active_parameters'] / 1e6:,.2f} M",
            f"{phase['steps']:,}",
            f"{phase['tokens']:,}",
            f"{phase['flops']:.2e}",
        )
        sizes = {**phase["memory"], "disk": phase["memory"]["disk"]}
        row = [decimal(sizes[name]) for name in COLUMNS]
        if not phase["fits"]:
            row[COLUMNS.index("peak")] = f"[bold red]{row[COLUMNS.index('peak')]}[/]"
        memory.add_row(phase["name"], *row)
    console.print(work)
    console.print()
    console.print(memory)
    console.print(f"Memory for the run: {decimal(limit)}")
