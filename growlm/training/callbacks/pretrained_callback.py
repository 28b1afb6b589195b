"""The first phase's model, where it was trained before."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from growlm.config.phase_plan import PlannedPhase
from growlm.huggingface.pretrained import Pretrained
from growlm.optim import adamw_8bit
from growlm.training.phase_module import PhaseStage


class PretrainedCallback(Callback):
    """Puts in a trained model, and its optimizer's state where it has one; in place of `GrowthCallback`.

    Args:
        pretrained: The model's folder.
        phase: The first phase.
    """

    def __init__(self, pretrained: Pretrained, phase: PlannedPhase) -> None:
        self.pretrained, self.phase = pretrained, phase

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read, tensor by tensor."""
        assert isinstance(pl_module, PhaseStage)
        mesh = pl_module.mesh
        pl_module.model = self.pretrained.model(self.phase.model, mesh, pl_module.world)
        if self.phase.settings.optimizer_state == "carry":
            eight_bits = pl_module.optimizer_settings.name == adamw_8bit.NAME
            pl_module.starting_states = self.pretrained.states(eight_bits, mesh)
