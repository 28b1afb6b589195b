"""Training a plan, phase after phase."""

from growlm.training.growth_callback import GrowthCallback, GrowthError
from growlm.training.run import RunResult, run_plan
from growlm.training.stage import PhaseStage
from growlm.training.stop import Interrupted

__all__ = ["GrowthCallback", "GrowthError", "Interrupted", "PhaseStage", "RunResult", "run_plan"]
