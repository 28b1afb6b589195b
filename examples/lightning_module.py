"""Train your own LightningModule in phases, and grow its model between them, on one process, DDP or FSDP2.

python examples/lightning_module.py [ddp | fsdp]
"""

import sys
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.data import DataLoader

from growlm.growth import Deepen, Upcycle, Widen
from growlm.model import ModelConfig, TransformerLM
from growlm.training import fit_phases

TEXT = torch.tensor(list(Path(__file__).read_bytes()))
LENGTH = 32
WINDOWS = [TEXT[i : i + LENGTH + 1] for i in range(0, len(TEXT) - LENGTH, 4)]
PHASES = [(20, []), (20, [Upcycle(num_experts=4)]), (20, [Widen(2), Deepen(extra_layers=1)])]


class Module(LightningModule):
    """A module that knows nothing of growth: its model lies in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"vocab_size": 256, "d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 64}
        self.model = TransformerLM(ModelConfig(**sizes, max_seq_len=LENGTH))

    def configure_model(self) -> None:
        """Shard the model under FSDP2; a grown one is sharded already."""
        if self.device_mesh is not None and not isinstance(self.model, FSDPModule):
            for module in (*self.model.blocks, self.model):
                fully_shard(module, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        """Return the cross-entropy of the next tokens."""
        logits = self.model(batch[:, :-1])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer, whose moments growlm grows with the model."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def make_trainer(kind: str, **phase: object) -> Trainer:
    """Return the Trainer of one phase."""
    strategy = ModelParallelStrategy(2, 1) if kind == "fsdp" else kind
    devices = 1 if kind == "auto" else 2
    return Trainer(accelerator="cpu", devices=devices, strategy=strategy, logger=False, **phase)


if __name__ == "__main__":
    data = DataLoader(WINDOWS, batch_size=16, shuffle=True)
    kind = sys.argv[1] if len(sys.argv) > 1 else "auto"
    fit_phases(partial(make_trainer, kind), Module(), data, PHASES)
