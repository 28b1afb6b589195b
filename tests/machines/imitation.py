"""Imitate other machines: what `scripts/imitate_machines.py` asks of the tests by environment variables.

`ONEDNN_MAX_CPU_ISA` and `ATEN_CPU_CAPABILITY` are read by torch itself, when it is loaded. Programs that tests
start call `imitate_machine` too.
"""

import os

import torch

THREADS = "GROWLM_TEST_THREADS"
NAN_IN_NEW_MEMORY = "GROWLM_TEST_NAN_IN_NEW_MEMORY"


def imitate_machine():
    """Set the number of threads, and let new memory hold NaN where that is asked for."""
    # One thread by default: tiny products gain nothing from a second, whose waiting costs minutes on shared cores.
    torch.set_num_threads(int(os.environ.get(THREADS, "1")))
    fill_new_memory(NAN_IN_NEW_MEMORY in os.environ)


def fill_new_memory(fill):
    """Let `torch.empty` and its kind return NaN, or let them be; return what was before."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(fill)
    return before
