"""Report what a run does: events, console output, logger metrics, history files and HTML reports."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from growlm.reporting.events import RunListener
    from growlm.reporting.records import BoundaryRecord, PhaseStart, PhaseSummary, RunSummary

__all__ = ["BoundaryRecord", "PhaseStart", "PhaseSummary", "RunListener", "RunSummary"]


def __getattr__(name: str) -> Any:
    # Imported lazily: the records import torch, which reports of finished runs do not need.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "events" if name == "RunListener" else "records"
    return getattr(import_module(f"{__name__}.{module}"), name)
