"""Commands in the process of a test, under limits of time and memory."""

import resource
import signal
import sys

import pytest

from growlm import convert, evaluate, generate, report, train, verify
from growlm import grow as grow_command
from growlm.planner.calibration import Calibration
from growlm.training import run_setup as prepare

COMMANDS = {
    "convert": convert,
    "evaluate": evaluate,
    "generate": generate,
    "grow": grow_command,
    "report": report,
    "train": train,
    "verify": verify,
}
SECONDS = 120
MEMORY = 2 * 2**30
"""Bytes of address space that a command may take beyond what the process has."""


@pytest.fixture
def bounded():
    """A hang is a failure, and so is a command that eats memory."""

    def late(*_):
        raise TimeoutError("the command hangs")

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


@pytest.fixture
def run(bounded, monkeypatch, capfd, tmp_path):
    """Run a command in this process, in the folder of the copied fixtures: exit code, and all that it prints."""
    monkeypatch.setattr(
        prepare, "load_or_measure_calibration", lambda *_: Calibration(*[1e9] * 6, 1e-6)
    )
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def call(module, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit) as ended:
            COMMANDS[module].main()
        out = capfd.readouterr()
        return ended.value.code, out.out + out.err

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
