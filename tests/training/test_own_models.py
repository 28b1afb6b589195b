"""GrowthCallback grows a model that is not growlm's, and a state of it goes through a folder."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule

from growlm.growth import Deepen, Upcycle, Widen
from growlm.runtime.errors import UserError
from growlm.training import GrowthCallback, PhaseState
from tests.growth.own_decoder import Decoder, decoder, difference, tokens
from tests.training.test_growth_callback import _quiet, make_trainer  # noqa: F401

BATCHES = torch.utils.data.DataLoader([tokens(seed) for seed in range(3)], batch_size=None)
PLAN = [[], [Upcycle(num_experts=4)], [Widen(scale_factor=1.5, noise_std=1e-2), Deepen()]]


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.model = decoder(torch.float32)

    def training_step(self, batch, batch_idx):
        logits = self.model(batch[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def test_it_grows_in_lightnings_loop_and_through_a_folder(tmp_path):
    module, state, records = Module(), None, []
    for index, operators in enumerate(PLAN):
        growth = GrowthCallback(operators, previous=state, on_boundary=records.append)
        trainer = make_trainer([growth])
        trainer.fit(module, BATCHES)
        state = PhaseState.from_trainer(trainer)
        folder = tmp_path / str(index)
        state.save(folder)
        with pytest.raises(UserError, match=r"own_decoder\.Decoder: .* add trust=\[tests\]"):
            PhaseState.load(folder)
        state = PhaseState.load(folder, trust=["tests"])
        assert type(state.model) is Decoder
        assert difference(state.model, module.model) == 0
    assert module.model.config.hidden_size == 24
    assert module.model.config.num_hidden_layers == 3
    assert [record.report.checks["functional"].status for record in records] == ["passed"] * 2
    assert state.optimizer_states["model.layers.2.mlp.router.weight"]["exp_avg"].abs().max() > 0
