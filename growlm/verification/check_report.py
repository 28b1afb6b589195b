"""What a check found, as data. Nothing here prints; `reporting/` does."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    FINDING = "finding"
    """Worth knowing, and no fault of the growth."""
    FAILED = "failed"
    NOT_APPLICABLE = "not_applicable"


@dataclass(frozen=True)
class CheckReport:
    """One check's outcome. True unless it failed."""

    name: str
    status: Status
    summary: str
    """One sentence with the figures that decided."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Plain numbers, lists and dictionaries, ready for JSON."""

    def __bool__(self) -> bool:
        return self.status is not Status.FAILED


@dataclass(frozen=True)
class GrowthReport:
    """All checks of one growth, and the losses on the probe. True unless one failed."""

    checks: dict[str, CheckReport]
    """By `rope`, `router`, `symmetry`, `functional`, `weights`."""
    loss_before: float
    loss_after: float
    max_logit_difference: float
    """Over the positions that no near tie reaches."""
    tolerance: float
    """The largest difference allowed, already scaled by the largest logit, or as rounding was measured."""
    lossless: bool
    """Whether the growth claims to keep the function."""

    @property
    def jump(self) -> float:
        """Loss after minus loss before."""
        return self.loss_after - self.loss_before

    def __bool__(self) -> bool:
        return all(self.checks.values())
