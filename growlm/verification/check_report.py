"""The results of checks, as data; `growlm/reporting/` prints them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """The outcome of a check."""

    PASSED = "passed"
    FINDING = "finding"
    """Worth knowing, but no fault of the growth."""
    FAILED = "failed"
    NOT_APPLICABLE = "not_applicable"


@dataclass(frozen=True)
class CheckReport:
    """The result of one check. Truthy unless the check failed."""

    name: str
    status: Status
    summary: str
    """One sentence with the numbers that decided."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Plain numbers, lists and dictionaries, ready for JSON."""

    def __bool__(self) -> bool:
        return self.status is not Status.FAILED


@dataclass(frozen=True)
class GrowthReport:
    """All checks of one growth, and the losses on the probe. Truthy unless a check failed."""

    checks: dict[str, CheckReport]
    """The reports by check: `rope`, `router`, `symmetry`, `functional`, `weights`."""
    loss_before: float
    loss_after: float
    max_logit_difference: float
    """The largest difference at positions that no near tie affects."""
    tolerance: float
    """The largest difference allowed: relative to the largest logit, or the measured rounding error."""
    lossless: bool
    """Whether the growth claims to keep the function."""
    expert_movement: dict[str, Any] = field(default_factory=dict)
    """Movement of the probe's tokens between experts (`count_expert_movement`); empty without experts."""

    @property
    def jump(self) -> float:
        """The loss after the growth minus the loss before."""
        return self.loss_after - self.loss_before

    def __bool__(self) -> bool:
        return all(self.checks.values())
