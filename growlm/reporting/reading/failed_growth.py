"""Find the growth that stopped a run, and the settings with which it can be tried again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from growlm.reporting.reading.run_files import Run

NOISE_STD = "0.01"
"""Noise that makes copies differ: what the shipped operators use."""
DEFAULT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class FailedGrowth:
    """Growth whose checks failed."""

    boundary: dict[str, Any]
    checks: dict[str, str]
    """Summaries of the failed checks, by name."""
    overrides: list[str]
    """Settings that let the growth pass; empty if none does, because the operator is at fault."""
    advice: str
    """Advice for whoever started the run, in a sentence or two."""


def find_failed_growth(run: Run) -> FailedGrowth | None:
    """Return the growth at which the run stopped; None if it did not stop at one."""
    if (
        run.summary is not None
        or not run.boundaries
        or run.boundaries[-1].get("passed") is not False
    ):
        return None
    boundary = run.boundaries[-1]
    checks = boundary.get("checks") if isinstance(boundary.get("checks"), dict) else {}
    failed = {}
    for name, check in (checks or {}).items():
        known = check if isinstance(check, dict) else {"status": check}
        if known.get("status") == "failed":
            failed[name] = str(known.get("summary") or "")
    overrides = _suggest_settings(boundary, run.config, set(failed))
    if overrides:
        advice = f"Set {' '.join(overrides)}; resuming alone would fail in the same way."
    else:
        entries = boundary.get("operators") or []
        names = ", ".join(f"operator {name}" for entry in entries for name in entry)
        advice = (
            "This growth declares that it loses nothing, and it lost something, so its operator is at fault, "
            f"not a setting{f' ({names})' if names else ''}. If it is your own, correct it, or return "
            "GrowthSpec(lossless=False) from it, and resume; if it is one of growlm's, please report it."
        )
    return FailedGrowth(boundary, failed, overrides, advice)


def _suggest_settings(
    boundary: Mapping[str, Any], config: Mapping[str, Any], failed: set[str]
) -> list[str]:
    """Return the overrides without which the checks cannot pass; empty if no setting helps."""
    settings = config.get("verification")
    tolerance = settings.get("tolerance") if isinstance(settings, dict) else None
    overrides = []
    if "symmetry" in failed:
        overrides += _suggest_noise(boundary) or ["verification.require_symmetry_breaking=false"]
    if failed & {"functional", "router"}:
        if not isinstance(tolerance, float) or tolerance >= DEFAULT_TOLERANCE:
            return []
        overrides.append(f"verification.tolerance={DEFAULT_TOLERANCE}")
    return [] if failed - {"symmetry", "functional", "router"} else overrides


def _suggest_noise(boundary: Mapping[str, Any]) -> list[str]:
    """Return overrides that give noise to the copies of operators that have none."""
    return [
        f"phases.{boundary.get('to')}.grow.{index}.{name}.noise_std={NOISE_STD}"
        for index, operator in enumerate(boundary.get("operators") or [])
        for name, settings in operator.items()
        if "noise_std" in (settings or {})
        and not settings["noise_std"]
        and settings.get("noise_snr_db") is None
    ]
