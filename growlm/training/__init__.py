"""Training a plan, phase after phase."""

from growlm.training.growth_callback import GrowthCallback, GrowthError
from growlm.training.run import Interrupted, RunResult, run_plan
from growlm.training.stage import PhaseStage

__all__ = ["GrowthCallback", "GrowthError", "Interrupted", "PhaseStage", "RunResult", "run_plan"]
