"""Make the tables of the study in Markdown, and write them between the markers of a page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from growlm.storage.atomic_files import atomic_write_text
from growth_study.arms import AXES
from growth_study.costs import Reading
from growth_study.findings import AxisFindings, ChangeFindings, Findings, Spread

PLACEHOLDER = re.compile(r"(<!-- table: ([\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def make_placeholder(name: str) -> str:
    """Return the markers between which `fill_page` writes a table."""
    return f"<!-- table: {name} -->\n<!-- end -->"


def fill_page(page: Path, tables: Mapping[str, str]) -> None:
    """Replace the text between `<!-- table: NAME -->` and `<!-- end -->` with the table of that name."""
    filled = PLACEHOLDER.sub(lambda m: f"{m[1]}\n{tables.get(m[2], '')}\n{m[3]}", page.read_text())
    atomic_write_text(page, filled)


def all_tables(findings: Findings) -> dict[str, str]:
    """Return the tables of everything that has been trained, by name."""
    tables = {
        "headline": _headline(findings.axes()),
        "savings": _savings(findings.axes()),
        "rates": _rates(findings),
        "speeds": _speeds(findings),
    }
    for axis in AXES:
        if changes := findings.changes(axis):
            tables[f"changes-{axis.name.replace(' ', '-')}"] = _changes(changes)
    return tables


def _headline(axes: Sequence[AxisFindings]) -> str:
    rows = [
        [
            axis.axis.title,
            f"{axis.arm.growth_share:.0%}",
            str(len(axis.losses["grown"].values)),
            *(axis.losses[name].text(".4f") for name in ("continue", "scratch", "grown")),
            axis.differences["continue"].text("+.4f"),
            axis.differences["scratch"].text("+.4f"),
        ]
        for axis in axes
    ]
    head = [
        "",
        "grown after",
        "seeds",
        "first model on",
        "from scratch",
        "grown",
        "− first on",
        "− scratch",
    ]
    return _table(head, rows)


def _savings(axes: Sequence[AxisFindings]) -> str:
    rows = [
        [
            axis.axis.title,
            f"{axis.arm.growth_share:.0%}",
            _read(axis.flops, ".2f"),
            _read(axis.seconds, ".2f"),
            _read(axis.late, "+.4f"),
        ]
        for axis in axes
    ]
    return _table(["", "grown after", "FLOPs", "seconds", "− scratch, in its seconds"], rows)


def _read(reads: Sequence[Reading | None], form: str) -> str:
    known = [read for read in reads if read is not None]
    if len(known) < len(reads):
        return "not reached"
    signs = {read.sign for read in known if read.sign}
    sign = f"{signs.pop()} " if len(signs) == 1 else "≈ " if signs else ""
    return sign + Spread(tuple(read.value for read in known)).text(form)


def _changes(changes: Sequence[ChangeFindings]) -> str:
    rows = [
        [
            change.arm.factor,
            change.arm.name,
            str(len(change.loss.values)),
            change.loss.text(".4f"),
            change.difference.text("+.4f"),
            ", ".join(f"{jump:+.4f}" for jump in change.jumps),
        ]
        for change in changes
    ]
    return _table(
        ["factor", "in place of the plan's", "seeds", "loss", "to the plan", "jump"], rows
    )


def _rates(findings: Findings) -> str:
    rows = []
    for axis in AXES:
        for arm, losses in findings.tuning(axis).items():
            if not losses or (arm == "continue" and axis.source != axis.name):
                continue
            best = min(losses, key=lambda rate: losses[rate])
            shown = (
                f"**{rate:g}: {losses[rate]:.4f}**"
                if rate == best
                else f"{rate:g}: {losses[rate]:.4f}"
                for rate in sorted(losses)
            )
            rows.append([axis.title, arm, ", ".join(shown)])
    return _table(["", "arm", "rate: final loss"], rows)


def _speeds(findings: Findings) -> str:
    rows = [
        [f"{total:,}", f"{active:,}", f"{1 / seconds:,.0f}"]
        for (total, active), seconds in sorted(findings.speeds.items())
    ]
    return _table(["parameters", "active", "tokens a second"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
