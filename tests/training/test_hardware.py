"""What is asked of the machine."""

import platform
import subprocess
import sys

import pytest

from growlm.config.schema import TrainerConfig
from growlm.training.hardware import free_memory, memory_limit

PAGE_FAULTS = """
import resource, sys, torch
from growlm.training.hardware import keep_freed_memory
if sys.argv[1] != "none":
    keep_freed_memory()

def faults(bytes):
    for _ in range(12):  # until small things have found places of their own
        torch.ones(bytes // 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(bytes // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(16 * 2**20), faults(48 * 2**20))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc's malloc")
@pytest.mark.slow
def test_freed_memory_is_kept_up_to_the_size_that_glibc_allows():
    found = {}
    for mode in ("none", "kept"):
        command = [sys.executable, "-c", PAGE_FAULTS, mode]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[mode] = [int(count) for count in out.split()]
    assert found["kept"][0] < 2000
    assert found["kept"][1] > 2000, "larger tensors go back to the system"
    assert found["none"][1] > 2000


def test_the_limit_is_the_setting_or_what_is_free():
    assert memory_limit(TrainerConfig(memory_gb=3.5), "cpu") == 3_500_000_000
    limit = memory_limit(TrainerConfig(), "cpu")
    assert 0 < limit < 2**50
    assert limit == pytest.approx(free_memory("cpu"), rel=0.2)
