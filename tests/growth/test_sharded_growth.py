"""What processes grow together, each holding its rows, is what one grows alone: to the bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.on_devices import outcome, start
from tests.growth.sharded_growth import PROGRAM

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.parametrize(
    ("processes", "families"),
    [
        (2, ["default"]),
        pytest.param(2, ["llama"], marks=pytest.mark.slow),
        pytest.param(3, ["default", "llama"], marks=pytest.mark.slow),
    ],
)
def test_sharded_growth_is_growth(processes, families):
    ended = outcome(start([PROGRAM, *families], processes), timeout=120)
    assert [code for code, _, _ in ended] == [0] * processes, [errors for *_, errors in ended]


@pytest.mark.slow
def test_two_processes_need_half_the_memory(tmp_path):
    out = tmp_path / "peaks.json"
    script = [sys.executable, SCRIPTS / "bench_sharded_growth.py"]
    subprocess.run([*script, "--cases", "mixture", "--json", out], check=True, timeout=550)
    found = json.loads(out.read_text())["mixture"]

    def peak(processes):
        parts = [
            each[step]["peak"]
            for each in found[processes]
            for step in ("weights", "checks", "moments")
        ]
        return max(parts)

    assert found["2"][0]["parameters"] >= 300e6
    assert all(each["passed"] for processes in found.values() for each in processes)
    assert peak("2") <= 0.6 * peak("1")
