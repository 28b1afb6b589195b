"""Train the phases of a plan, one after another."""

from growlm.runtime.signals import Interrupted
from growlm.training.callbacks.growth_callback import GrowthCallback
from growlm.training.callbacks.replica_check import GrowthError
from growlm.training.phase_loop import fit_phases
from growlm.training.phase_module import PhaseStage
from growlm.training.phase_state import PhaseState
from growlm.training.plan_runner import RunResult, run_plan

__all__ = [
    "GrowthCallback",
    "GrowthError",
    "Interrupted",
    "PhaseStage",
    "PhaseState",
    "RunResult",
    "fit_phases",
    "run_plan",
]
