"""Telling people and programs what a run did."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from growlm.reporting.events import RunListener
    from growlm.reporting.records import BoundaryRecord, PhaseStart, PhaseSummary, RunSummary

__all__ = ["BoundaryRecord", "PhaseStart", "PhaseSummary", "RunListener", "RunSummary"]


def __getattr__(name: str) -> Any:
    # The records load torch, which the report of runs that are over does without.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "events" if name == "RunListener" else "records"
    return getattr(import_module(f"{__name__}.{home}"), name)
