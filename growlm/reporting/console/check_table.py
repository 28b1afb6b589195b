"""Print the results of growth checks as a table."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from growlm.verification.check_report import CheckReport, Status

STATUS_LABELS = {
    Status.PASSED: "[green]passed[/]",
    Status.FINDING: "[yellow]finding[/]",
    Status.FAILED: "[bold red]FAILED[/]",
    Status.NOT_APPLICABLE: "[dim]does not apply[/]",
}
CHECK_TITLES = {
    "rope": "RoPE integrity",
    "router": "router scaling",
    "symmetry": "symmetry breaking",
    "functional": "functional identity",
    "weights": "weight integrity",
    "router_lock": "router lock",
}


def print_checks(console: Console, checks: Mapping[str, CheckReport]) -> None:
    """Print a line per check: name, status and summary."""
    table = Table.grid(padding=(0, 2))
    for name, check in checks.items():
        table.add_row(f"  {CHECK_TITLES[name]}", STATUS_LABELS[check.status], Text(check.summary))
    console.print(table)
