"""Load a pretrained model and its optimizer state for the first phase."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from growlm.config.phase_plan import PlannedPhase
from growlm.huggingface.pretrained import PretrainedFolder
from growlm.optim import adamw_8bit
from growlm.training.callbacks.growth_callback import GrowthCallback
from growlm.training.phase_module import PhaseStage


class PretrainedCallback(Callback):
    """Callback that loads a pretrained model and its optimizer state, for a `GrowthCallback` without growth.

    Args:
        pretrained: Folder of the pretrained model.
        phase: First phase of the plan.
        growth: Callback of the phase, which gives the state to the optimizer.
    """

    def __init__(
        self, pretrained: PretrainedFolder, phase: PlannedPhase, growth: GrowthCallback
    ) -> None:
        self.pretrained, self.phase, self.growth = pretrained, phase, growth

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the model and its optimizer state, one tensor at a time."""
        assert isinstance(pl_module, PhaseStage)
        mesh = pl_module.mesh
        pl_module.model = self.pretrained.load_model(
            self.phase.model_config, mesh, pl_module.dist_context
        )
        if self.phase.settings.optimizer_state == "carry":
            eight_bits = pl_module.optimizer_settings.name == adamw_8bit.OPTIMIZER_NAME
            self.growth.begin_with(self.pretrained.read_optimizer_states(eight_bits, mesh))
