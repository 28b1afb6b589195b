"""What all tests share: one thread, how hypothesis reports, the tiny models of tests/model."""

import gc
import os
import sys

import hypothesis
import pytest

from tests.machines.imitation import imitate_machine
from tests.planner.stand_in_speed import use_stand_in_speed

imitate_machine()
use_stand_in_speed()

# No deadline: the first example of a test pays for torch's own start.
hypothesis.settings.register_profile("growlm", print_blob=True, deadline=None)
hypothesis.settings.load_profile("growlm")


LONG = (
    "commands",
    "distributed",
    "huggingface",
    "optim",
    "planner",
    "reporting",
    "runtime",
    "sweep",
    "training",
)
"""Folders whose files take long: begun last, one would be waited for by all processes but its own."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.parent.name not in LONG)


def pytest_collection_finish():
    """Spare every later garbage collection the objects of all libraries and tests, a third of each short run."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in this process; returns its exit code, output and errors."""

    def call(module, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit) as ended:
            module.main()
        out = capsys.readouterr()
        return ended.value.code, out.out, out.err

    return call


@pytest.fixture
def own_registry(monkeypatch):
    """Operators that a test registers, and entry points that it adds, are gone after it."""
    from growlm.growth.operators import registry

    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    registry.find_broken_entry_points.cache_clear()
    yield
    registry.find_broken_entry_points.cache_clear()


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """A cache for all tests, also those of other workers and in processes, beside the user's own."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all workers
    (folder / "cache").mkdir(exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    # Old releases of wandb leave a git process behind, whose open pipe a later test would be blamed for.
    os.environ["WANDB_DISABLE_GIT"] = "true"
