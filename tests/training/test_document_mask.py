"""A run with `data.document_mask=true` trains and validates as if each document were read alone, and resumes."""

import pytest
import torch
from lightning.pytorch import Callback

from growlm.training import run_plan
from tests.training.stopping import assert_same_run, slow
from tests.training.test_resume import stopped_and_resumed
from tests.training.tiny_run import rows, tiny_config

EOS = 256  # of tokenizer=bytes
PHASES = ("dense", "moe", "wide", "deep")


@torch.no_grad()
def loss_of_documents(model, batch):
    """The mean loss of a batch whose documents are read one by one, and the number of documents."""
    losses = []
    for row in batch:
        ends = [i + 1 for i in (row[:-1] == EOS).nonzero().flatten().tolist()]
        for start, end in zip([0, *ends], [*ends, len(row) - 1], strict=True):
            if start < end:  # the token after a document is predicted from its end of text
                losses.append(model.token_losses(row[None, start : end + 1]))
    return float(torch.cat(losses).mean()), len(losses)


class Expect(Callback):
    """Computes every loss of training and validation from documents that are read alone."""

    def __init__(self):
        self.losses, self.validations, self.most_documents = [], [], 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        loss, count = loss_of_documents(pl_module.model, batch)
        self.losses.append(loss)
        self.most_documents = max(self.most_documents, count / len(batch))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.validations.append((loss_of_documents(pl_module.model, batch)[0], pl_module))

    def on_validation_end(self, trainer, pl_module):
        expected, _ = self.validations[-1]
        self.validations[-1] = (expected, pl_module.validation_loss)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """Settings of a run on documents of 3 to 17 bytes, in sequences of 32."""
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("".join(f"{'abcdefgh'[i % 8] * (2 + i % 15)}.\n" for i in range(1000)))
    return (
        "data=text",
        f"data.path='{path}'",
        "data.sample_by=line",
        "data.document_mask=true",
        "callbacks.log_every=1",
        "trainer.precision=32-true",
        *(f"phases.{name}.steps=2" for name in PHASES),
    )


@pytest.fixture(scope="module")
def masked_run(masked, tmp_path_factory):
    expected = Expect()
    config = tiny_config(tmp_path_factory.mktemp("masked") / "run", *masked)
    return run_plan(config, [expected]).run_dir, expected


def test_losses_are_those_of_documents_read_alone(masked_run):
    run_dir, expected = masked_run
    found = [row["loss"] for row in rows(run_dir) if "loss" in row]
    assert expected.most_documents >= 3
    assert len(found) == len(expected.losses) == 2 * len(PHASES)
    assert found == pytest.approx(expected.losses, abs=1e-5)
    assert all(loss == pytest.approx(wanted, abs=1e-5) for wanted, loss in expected.validations)


@pytest.mark.parametrize("overrides", [(), *slow(("trainer.precision=bf16-mixed",))])
def test_a_stopped_run_resumes_to_the_bit(overrides, masked, masked_run, tmp_path):
    resumed = stopped_and_resumed(tmp_path / "run", (*masked, *overrides), 5)
    whole = masked_run[0]
    if overrides:
        whole = run_plan(tiny_config(tmp_path / "whole", *masked, *overrides)).run_dir
    assert_same_run(whole, resumed.run_dir)


@pytest.mark.slow
def test_streamed_samples_and_recomputed_blocks_are_the_same_run(masked, masked_run, tmp_path):
    streamed = tiny_config(tmp_path / "streamed", *masked, "data.streaming=true")
    recomputed = tiny_config(
        tmp_path / "recomputed", *masked, "trainer.activation_checkpointing=true"
    )
    for config in (streamed, recomputed):
        assert_same_run(masked_run[0], run_plan(config).run_dir)
