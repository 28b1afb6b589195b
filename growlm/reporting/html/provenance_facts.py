"""List where a run's numbers come from, for the top of its page."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from growlm.reporting.reading.run_files import Run

Fact = dict[str, Any]
"""`label`, `value`; `copy`: whether the page offers to copy it; `wide`: whether it needs a line of its own."""


def list_provenance_facts(run: Run) -> list[Fact]:
    """Return what is known of a run's origin; older runs have recorded less."""
    sessions = run.sessions or [{}]
    first, last = sessions[0], sessions[-1]
    resumed = f"; resumed {len(sessions) - 1} ×" if len(sessions) > 1 else ""
    summary = run.summary or {}
    precision = summary.get("precision")
    facts = [
        (
            "started",
            _format_time(first.get("started")) and f"{_format_time(first.get('started'))}{resumed}",
        ),
        ("seed", None if run.config.get("seed") is None else str(run.config["seed"])),
        ("device", _format_all(sessions, "processor") or summary.get("device")),
        ("precision", precision and str(precision)),
        ("processes", str(n) if (n := last.get("processes") or 1) > 1 else None),
        ("git commit", _format_all(sessions, "git_commit")),
        ("host", _format_all(sessions, "host", "system")),
        ("versions", _format_versions(last.get("versions"))),
        ("command", first.get("command")),
        ("folder", str(run.folder.absolute())),
    ]
    return [
        {
            "label": label,
            "value": str(value),
            "copy": label in ("git commit", "command", "folder"),
            "wide": label in ("versions", "command", "folder"),
        }
        for label, value in facts
        if value
    ]


def _format_time(text: object) -> str | None:
    try:
        return f"{datetime.fromisoformat(str(text)):%Y-%m-%d %H:%M %Z}".strip()
    except ValueError:
        return None


def _format_all(sessions: list[dict[str, Any]], *keys: str) -> str | None:
    """Return the value of each session, once each: a run may have been resumed on another machine."""
    values = [", ".join(str(one[key]) for key in keys if one.get(key)) for one in sessions]
    return "; then ".join(dict.fromkeys(value for value in values if value)) or None


def _format_versions(versions: object) -> str | None:
    if not isinstance(versions, dict):
        return None
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)
