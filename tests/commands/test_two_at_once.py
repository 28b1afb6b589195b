"""Two commands that write to one place at once: one is refused in a line, the other's result is whole."""

import os
import signal
import threading
import time

import pytest
import torch

from growlm.checkpoint import load_model, save_model
from growlm.runtime.errors import DiskError
from growlm.storage.atomic_files import atomic_write_text
from growlm.storage.locks import LockedError, lock_for_creation
from tests.commands.processes import CommandProcess
from tests.model.tiny_models import build, tiny_config
from tests.training.stopping import slow

COMMANDS = {
    "grow": ("checkpoint={model}", "out={out}", "grow=[{widen: {scale_factor: 4}}]"),
    "convert": ("source={model}", "out={out}", "to=huggingface"),
    "generate": ("checkpoint={model}", "out={out}", "prompt=a", "max_new_tokens=400", "device=cpu"),
}


@pytest.fixture
def start(model, tmp_path, tmp_path_factory):
    """Start a command that writes into the test's folder `out`."""

    def run(name):
        out, streams = str(tmp_path / "out"), tmp_path_factory.mktemp("streams")
        arguments = [
            argument.replace("{model}", str(model)).replace("{out}", out)
            for argument in COMMANDS[name]
        ]
        return CommandProcess(f"growlm.{name}", arguments, tmp_path, streams)

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    config = tiny_config(
        d_model=256, n_heads=16, n_kv_heads=16, head_dim=16, d_ff=2048, n_layers=6, vocab_size=257
    )
    save_model(build(config, dtype=torch.float32), folder, {"tokenizer": "bytes"})
    return folder


@pytest.mark.parametrize("name", ["grow", *slow("convert", "generate")])
def test_the_second_is_refused_and_the_first_is_whole(name, start, tmp_path):
    out = tmp_path / "out"
    first = start(name)
    while not list(tmp_path.glob(".out*.partial")) and first.poll() is None:
        time.sleep(0.001)
    first.send_signal(signal.SIGSTOP)  # until the second has come and gone
    second = start(name)
    refused = second.wait(120)
    first.send_signal(signal.SIGCONT)
    done = first.wait(120)
    assert (refused.returncode, done.returncode) == (2, 0), (refused, done)
    said = refused.stderr
    assert said.startswith(f"error: out={out}: another process writes it (process {first.pid} on")
    assert said.count("\n") == 1
    assert os.listdir(tmp_path) == ["out"]
    if name == "grow":
        assert load_model(out)[0].config.d_model == 1024


@pytest.mark.parametrize("name", ["grow", *slow("convert", "generate")])
def test_what_a_killed_command_leaves_is_no_obstacle(name, start, tmp_path):
    out = tmp_path / "out"
    first = start(name)
    while not list(tmp_path.glob(".out*.partial")) and first.poll() is None:
        time.sleep(0.001)
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = start(name).wait(120)
    assert done.returncode == 0, done.stderr
    assert out.exists()
    assert not list(tmp_path.glob(".out.lock"))


def test_of_many_at_once_one_writes_at_a_time(tmp_path):
    """Also where the one before removes the lock's file while the next one opens it."""
    inside, most, refused = [], [], []

    def work():
        for _ in range(200):
            try:
                with lock_for_creation(tmp_path / "x"):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0)
                    inside.pop()
            except LockedError:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) + len(refused) == 800
    assert not list(tmp_path.iterdir())


def test_files_that_two_write_at_once_are_one_of_both(tmp_path):
    texts = ["a" * 10**5, "b" * 2 * 10**5]

    failed = []

    def work(text):
        try:
            for _ in range(50):
                atomic_write_text(tmp_path / "report.html", text)
        except DiskError as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if (tmp_path / "report.html").exists():
            assert (tmp_path / "report.html").read_text() in texts
    assert not failed
    assert os.listdir(tmp_path) == ["report.html"]
