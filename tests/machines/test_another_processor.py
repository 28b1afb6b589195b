"""A run that goes on with another kind of processor, imitated by torch's own switches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.tiny_run import TINY, rows

pytestmark = pytest.mark.machines

STOP = """
import sys
from pathlib import Path
from tests.machines.imitation import imitate_machine
from tests.training.stopping import SignalAt
from tests.training.tiny_run import tiny_config
from growlm.training import Interrupted, run_plan

imitate_machine()
try:
    run_plan(tiny_config(Path(sys.argv[1]), *sys.argv[2:]), [SignalAt(6)])
except Interrupted:
    sys.exit(0)
sys.exit("was to be stopped")
"""
SETTINGS = ("trainer.precision=32-true", "callbacks.log_every=1")


def python(*arguments, **variables):
    environment = {k: v for k, v in os.environ.items() if k not in IMITATIONS}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


IMITATIONS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
MACHINE = {"ATEN_CPU_CAPABILITY": "avx2"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    overrides = [*TINY, "logger=none", *SETTINGS, f"run_dir={run_dir}"]
    python("-m", "growlm.train", *overrides, **MACHINE)
    return run_dir


@pytest.mark.parametrize(
    ("later", "is_same"),
    [
        (MACHINE, True),
        ({"ATEN_CPU_CAPABILITY": "default"}, False),
        (MACHINE | {"OMP_NUM_THREADS": "2"}, False),
        (MACHINE | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, False),
    ],
    ids=["the same", "other random numbers", "threads", "other products"],
)
def test_a_resume_says_what_it_promises_and_keeps_it(later, is_same, whole, tmp_path):
    run_dir = tmp_path / "run"
    python("-c", STOP, run_dir, *SETTINGS, **MACHINE)
    out = python("-m", "growlm.train", f"resume={run_dir}", **later)
    assert ("began on another kind of processor" in out) == (not is_same)
    found, expected = (
        [row["loss"] for row in rows(folder) if "loss" in row] for folder in (run_dir, whole)
    )
    assert found == (expected if is_same else pytest.approx(expected, abs=1e-4))


def test_the_record_names_the_processor(whole):
    record = json.loads(Path(whole, "resume", "run.json").read_text())
    assert "AVX2" in record["processor"]
    assert "1 thread" in record["processor"]
