"""Train on a data module of one's own, named with `_target_`.

    python examples/own_data_module.py

On the command line: python -m growlm.train data._target_=my_package.ArithmeticData data.digits=3
"""

import tempfile
from collections.abc import Iterator

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from growlm.config import load_config
from growlm.training import run_plan

LENGTH = 32
SMALL_RUN = [
    *("model.d_model=32", "model.head_dim=8", "model.d_ff=64", "model.n_layers=2"),
    *(f"phases.{name}.steps=4" for name in ("dense", "moe", "wide", "deep")),
    *(f"sequence_length={LENGTH}", "tokenizer=bytes", "callbacks.sample_tokens=0", "logger=none"),
]


class Sums:
    """Batches of additions as bytes: int64 tokens, (8, LENGTH + 1). It saves where it is."""

    def __init__(self, digits: int, seed: int) -> None:
        self.limit, self.generator = 10**digits, torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            pairs = torch.randint(self.limit, (8 * LENGTH, 2), generator=self.generator).tolist()
            text = "".join(f"{a}+{b}={a + b}\n" for a, b in pairs).encode()
            yield torch.tensor(list(text[: 8 * (LENGTH + 1)])).view(8, LENGTH + 1)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed run needs to go on with the next batch."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore it."""
        self.generator.set_state(state["generator"])


class ArithmeticData(LightningDataModule):
    """Sums to train on, and others for validation."""

    def __init__(self, digits: int = 2) -> None:
        super().__init__()
        self.train_dataloader = lambda: Sums(digits, seed=0)
        self.val_dataloader = lambda: Sums(digits, seed=1)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        named = [f"data._target_={__name__}.ArithmeticData", "data.digits=3"]
        run_plan(load_config(*SMALL_RUN, *named, f"run_dir={folder}/run"))
