"""What is asked of the machine."""

import gc
import platform
import subprocess
import sys
import weakref

import pytest

from growlm.runtime.memory import (
    free_memory_bytes,
    gc_frozen,
    memory_limit_bytes,
    release_memory,
)

PAGE_FAULTS = """
import resource, sys, torch
from growlm.runtime.memory import keep_freed_memory
if sys.argv[1] != "none":
    keep_freed_memory()

def faults(bytes):
    for _ in range(4):  # until small things have found places of their own
        torch.ones(bytes // 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(bytes // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(int(sys.argv[2])))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc's malloc")
@pytest.mark.slow
@pytest.mark.parametrize("size", [48 * 2**20, 2**31 + 2**26])
def test_freed_memory_is_kept(size):
    found = {}
    for mode in ("none", "kept"):
        command = [sys.executable, "-c", PAGE_FAULTS, mode, str(size)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[mode] = int(out)
    assert found["kept"] < 1000
    assert found["none"] > 30_000


def test_the_limit_is_the_setting_or_what_is_free():
    assert memory_limit_bytes(3.5, "cpu") == 3_500_000_000
    limit = memory_limit_bytes(None, "cpu")
    assert 0 < limit < 2**50
    assert limit == pytest.approx(free_memory_bytes("cpu"), rel=0.2)


def make_cycle():
    class Node:
        pass

    node = Node()
    node.self = node
    return weakref.ref(node)


@pytest.fixture
def nothing_frozen():
    """Undo what tests/conftest.py froze, for one test."""
    gc.unfreeze()
    yield
    gc.freeze()


def test_what_the_caller_froze_stays_frozen():
    before = gc.get_freeze_count()
    assert before
    with gc_frozen():
        cycle = make_cycle()
        release_memory()
        assert cycle() is None
    assert gc.get_freeze_count() == before


@pytest.mark.usefixtures("nothing_frozen")
def test_cycles_made_within_a_run_are_released_and_older_objects_looked_at_again_after_it():
    with gc_frozen():
        assert gc.get_freeze_count()
        cycle = make_cycle()
        release_memory()
        assert cycle() is None
    assert gc.get_freeze_count() == 0
