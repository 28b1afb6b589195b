"""Print the results of growth checks: a verdict on one line, and a table of details."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from growlm.reporting.console.console_layout import INDENT, print_indented, wrap_text
from growlm.runtime.number_format import format_jump, format_probe_loss
from growlm.verification.check_report import CheckReport, GrowthReport, Status

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
MIN_SUMMARY_WIDTH = 30
"""Width below which a check's summary goes on lines of its own."""


def print_checks(console: Console, checks: Mapping[str, CheckReport]) -> None:
    """Print name, status and summary of each check."""
    statuses = {name: Text.from_markup(STATUS_LABELS[checks[name].status]) for name in checks}
    title_width = max(len(CHECK_TITLES[name]) for name in checks)
    status_width = max(status.cell_len for status in statuses.values())
    start = INDENT + title_width + 2 + status_width + 2
    for name, check in checks.items():
        head = Text(" " * INDENT + CHECK_TITLES[name].ljust(title_width + 2))
        head.append_text(statuses[name])
        if console.width - start < MIN_SUMMARY_WIDTH:
            console.print(head, soft_wrap=True)
            print_indented(console, check.summary, 2 * INDENT)
            continue
        head.pad_right(start - head.cell_len)
        for line in wrap_text(check.summary, console.width - start):
            console.print(head.append_text(line), soft_wrap=True)
            head = Text(" " * start)


def print_verdict(console: Console, report: GrowthReport, verbose: bool) -> None:
    """Print the verdict on a growth, and the checks that need attention.

    Args:
        console: Console to print to.
        report: Checks of the growth.
        verbose: Whether every check is printed; they always are if one failed.
    """
    if verbose or not report:
        print_checks(console, report.checks)
    elif findings := select_findings(report.checks):
        print_checks(console, findings)
    line = format_verdict(report.checks)
    line.append(", jump ").append(format_jump(report.jump), style="bold")
    line.append(
        f" (probe loss {format_probe_loss(report.loss_before)} → {format_probe_loss(report.loss_after)})"
    )
    print_indented(console, line)


def format_verdict(checks: Mapping[str, CheckReport]) -> Text:
    """Return how many checks passed and how many did not: `3 checks passed, 1 failed`."""
    counts = Counter(check.status for check in checks.values())
    passed, failed, findings = (
        counts[status] for status in (Status.PASSED, Status.FAILED, Status.FINDING)
    )
    is_good = not failed and not findings
    counted = f"{passed} {'check' if passed == 1 else 'checks'} passed"
    verdict = Text().append(counted, style="bold green" if is_good else None)
    if findings:
        verdict.append(", ").append(
            f"{findings} {'finding' if findings == 1 else 'findings'}", style="bold yellow"
        )
    if failed:
        verdict.append(", ").append(f"{failed} FAILED", style="bold red")
    return verdict


def select_findings(checks: Mapping[str, CheckReport]) -> dict[str, CheckReport]:
    """Return the checks that have something to say: those that neither passed nor do not apply."""
    quiet = (Status.PASSED, Status.NOT_APPLICABLE)
    return {name: check for name, check in checks.items() if check.status not in quiet}
