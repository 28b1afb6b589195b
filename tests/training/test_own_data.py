"""Data modules and iterables of the user's own train a plan, and resume."""

import json
import math
import re

import pytest
import torch

from growlm.data import load_tokenizer
from growlm.data.own_data import OwnDataRequest, open_own_samples
from growlm.distributed.process_group import DistributedContext
from growlm.reporting.events import RunListener
from growlm.runtime.errors import RunError, UserError
from growlm.training import run_plan
from growlm.training.run_setup import _open_own_data
from tests.training.stopping import assert_same_run
from tests.training.test_resume import stopped_and_resumed
from tests.training.tiny_run import events, tiny_config

PACKAGE = """
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

def rows(number, seed=0, width=33):
    return torch.randint(257, (number, width), generator=torch.Generator().manual_seed(seed))

class Module(LightningDataModule):
    def __init__(self, batch=3, shuffle=False, documents=200):
        super().__init__()
        self.batch, self.shuffle = batch, shuffle
    def setup(self, stage):
        self.train, self.val = rows(100), rows(9, 1)
    def train_dataloader(self):
        return DataLoader(self.train, self.batch, shuffle=self.shuffle)
    def val_dataloader(self):
        return [self.val]

class Loader:
    given = 0
    def __init__(self, start=0):
        self.next = start
    def __iter__(self):
        while True:
            self.next += 1
            Loader.given += 1
            yield rows(3, self.next)
    def state_dict(self):
        return {"next": self.next}
    def load_state_dict(self, state):
        self.next = state["next"]

class Stateful(Module):
    def __init__(self, start=0, documents=200):
        super().__init__()
        self.start = start
    def train_dataloader(self):
        return Loader(self.start)

def stream(number=40, documents=200):
    for index in range(number):
        yield rows(2, index)

class Batches:
    def __init__(self, batch=None):
        self.batch = batch
    def __iter__(self):
        yield from ([rows(8)] if self.batch is None else [eval(self.batch)])

def nothing():
    return iter(())
def number():
    return 3
"""


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    (tmp_path / "package_of_data.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)


def request(name="Module", **changes):
    import package_of_data

    arguments = {
        "target": name,
        "arguments": {},
        "make": getattr(package_of_data, name),
        "sequence_length": 32,
        "vocab_size": 257,
        "seed": 0,
        "validation_samples": 4,
    }
    return OwnDataRequest(**arguments | changes)


def rows_of(samples, *counts, first=0):
    parts = []
    for count in counts:
        parts.append(samples.__getitems__(range(first, first + count)))
        first += count
    return torch.cat(parts)


def test_rows_are_regrouped_whatever_the_batches_are():
    import package_of_data

    train, validation, _, _ = open_own_samples(request())
    assert torch.equal(rows_of(train, 4, 1, 10), package_of_data.rows(100)[:15])
    assert torch.equal(
        torch.stack([validation[i] for i in range(4)]), package_of_data.rows(9, 1)[:4]
    )
    again, *_ = open_own_samples(request())
    assert torch.equal(rows_of(again, 3, first=12), package_of_data.rows(100)[12:15])


def test_a_data_set_that_ends_begins_again():
    import package_of_data

    rows = package_of_data.rows(100)
    train, *_ = open_own_samples(request())
    assert torch.equal(rows_of(train, 98, 5), torch.cat([rows, rows[:3]]))
    generator, validation, _, notes = open_own_samples(request("stream"))
    assert "held out" in notes[-1]
    stream = torch.cat(list(package_of_data.stream()))
    assert torch.equal(validation.rows, stream[:4])
    assert torch.equal(rows_of(generator, 76, 4), torch.cat([stream[4:], stream[4:8]]))


@pytest.mark.parametrize(("end", "is_noted"), [(256, False), (0, True)])
def test_documents_without_an_end_of_text_are_reported(end, is_noted, tmp_path, monkeypatch):
    import package_of_data

    settings = ("data._target_=package_of_data.Module", "data.document_mask=true")
    config = tiny_config(tmp_path / "run", *settings)
    assert (config.data.document_mask, config.data.arguments) == (True, {"documents": 200})
    rows = torch.full((9, 33), 7)
    rows[:, 5] = end
    monkeypatch.setattr(package_of_data, "rows", lambda *_: rows)
    listener, messages = RunListener(), []
    listener.message_logged = messages.append
    _open_own_data(config, load_tokenizer("bytes"), DistributedContext(), listener)
    noted = [text for text in messages if "data.document_mask" in text]
    assert bool(noted) == is_noted
    assert all("the end of text, token 256" in text for text in noted)


def test_the_order_of_a_sampler_is_one_of_seed_and_epoch():
    import package_of_data

    make = lambda: package_of_data.Module(shuffle=True)  # noqa: E731
    orders = []
    for seed in (0, 0, 1):
        before = torch.random.get_rng_state()
        train, *_ = open_own_samples(request(make=make, seed=seed))
        orders.append(rows_of(train, 150, 50))
        assert torch.equal(before, torch.random.get_rng_state())
        torch.rand(3)
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0][:100], orders[0][100:])


def test_every_process_reads_its_own_data():
    import package_of_data

    train, *_ = open_own_samples(request(rank=1, world_size=2))
    # Batches of 4 over two processes: this one's share is the second half of each.
    parts = [train.__getitems__(range(first + 2, first + 4)) for first in (8, 12)]
    assert torch.equal(torch.cat(parts), package_of_data.rows(100)[4:8])
    with pytest.raises(UserError, match="needs a data module with val_dataloader"):
        open_own_samples(request("stream", world_size=2))


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("Stateful", 7),
        pytest.param("Module", 6, marks=pytest.mark.slow),
        *[
            p
            for name in ("Stateful", "stream")
            for p in [pytest.param(name, step, marks=pytest.mark.slow) for step in (3, 4, 8, 9)]
        ],
    ],
)
def test_it_resumes_to_the_bit(name, step, tmp_path):
    import package_of_data

    overrides = (f"data._target_=package_of_data.{name}",)
    package_of_data.Loader.given = 0
    whole = run_plan(tiny_config(tmp_path / "whole", *overrides))
    given, package_of_data.Loader.given = package_of_data.Loader.given, 0
    resumed = stopped_and_resumed(tmp_path / "run", overrides, step)
    assert_same_run(whole.run_dir, resumed.run_dir)
    assert package_of_data.Loader.given <= given + 2  # with a state, nothing is read again


def test_a_state_is_restored_wherever_the_data_would_begin():
    import package_of_data

    train, *_ = open_own_samples(request("Stateful"))
    rows_of(train, 4, 4)
    state = train.get_state()
    expected = rows_of(train, 4, 4, first=8)
    other, *_ = open_own_samples(request(make=lambda: package_of_data.Stateful(start=50)))
    other.restore_state(state)
    assert torch.equal(torch.as_tensor(other.get_state()["rows"]), state["rows"])
    assert torch.equal(rows_of(other, 4, 4, first=8), expected)


def test_what_growlm_cannot_promise_is_said_once(tmp_path, capsys):
    run = run_plan(
        tiny_config(tmp_path / "run", "data._target_=package_of_data.Module", "phases.moe.steps=0")
    )
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("it is exact only if the same batches come in the same order") == 1
    assert said.count("bits per byte are not reported") == 1
    assert all("val_bits_per_byte" not in event for event in events(run.run_dir, "validation"))
    assert [phase.val_bits_per_byte for phase in run.summary.phases] == [None] * 4
    assert all(math.isfinite(phase.val_loss) for phase in run.summary.phases)
    assert (
        json.loads((run.run_dir / "summary.json").read_text())["phases"][0]["val_bits_per_byte"]
        is None
    )
    text = (run.run_dir / "report.html").read_text().lower().split("<script")[0]
    assert not re.search(r"\bnan\b", text)


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ("rows(2, width=32)", r"sequence_length \+ 1 = 33\); got torch.int64 \(2, 32\)"),
        ("rows(2).int()", "got torch.int32"),
        ("rows(2)[0]", r"got torch.int64 \(33,\)"),
        ("[1, 2]", "got a list"),
        ("rows(2) + 300", "token ids must be below 257"),
        ("rows(2) - 300", "token ids must be below 257"),
    ],
)
def test_batches_are_checked(batch, reason):
    import package_of_data

    with pytest.raises(UserError, match=reason):
        open_own_samples(request("Batches", make=lambda: package_of_data.Batches(batch)))


@pytest.mark.parametrize(
    ("name", "reason"), [("nothing", "no batches"), ("number", "is neither a")]
)
def test_what_is_no_data(name, reason):
    with pytest.raises(UserError, match=reason):
        open_own_samples(request(name))


def test_a_data_set_with_no_more_than_is_held_out_is_an_error():
    import package_of_data

    train, *_ = open_own_samples(request(make=lambda: package_of_data.stream(2)))
    with pytest.raises(RunError, match="gives no batches"):
        rows_of(train, 1)
