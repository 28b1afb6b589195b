"""Telling people and programs what a run did."""

from growlm.reporting.listener import RunListener
from growlm.reporting.records import BoundaryRecord, PhaseStart, PhaseSummary, RunSummary

__all__ = ["BoundaryRecord", "PhaseStart", "PhaseSummary", "RunListener", "RunSummary"]
