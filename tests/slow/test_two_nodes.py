"""Two machines that are cut off from each other: both stop, say why, and go on when the cable is back."""

import time

import pytest

from tests.distributed.on_devices import history, largest_difference
from tests.slow.two_nodes import TwoNodes, can_make_nodes
from tests.training.tiny_run import TINY, tiny_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_make_nodes(), reason="needs root, and iproute2's ip"),
]

TIMEOUT = 18
SETTINGS = [
    "trainer.precision=64-true",  # in fp32, 300 steps drift apart by rounding alone
    "callbacks.log_every=1",
    "~phases.moe",
    "phases.wide.steps=300",
]


def reached(run_dir, phase):
    path = run_dir / "checkpoints" / "training_history.jsonl"
    return path.exists() and any(row.get("phase") == phase for row in history(run_dir))


def test_a_cut_cable_ends_both_nodes_and_both_go_on(tmp_path):
    run_dir = tmp_path / "run"
    train = ["-m", "growlm.train"]
    settings = [*TINY, *SETTINGS, "logger=none", "checkpoint.every_steps=20", f"run_dir={run_dir}"]
    with TwoNodes() as nodes:
        limit = f"trainer.timeout_minutes={TIMEOUT / 60}"
        started = [nodes.torchrun(node, tmp_path, *train, *settings, limit) for node in (0, 1)]
        while not reached(run_dir, "wide"):
            assert [process.poll() for process in started] == [None, None]
            time.sleep(0.05)
        nodes.cut()
        cut = time.monotonic()
        for process in started:
            assert process.wait(timeout=5 * TIMEOUT) != 0
        seconds = time.monotonic() - cut
        print(
            f"both had ended {seconds:.0f} s after the cut; trainer.timeout_minutes is {TIMEOUT} s"
        )
        assert seconds < TIMEOUT + 15
        for node in (0, 1):
            said = (tmp_path / f"node_{node}.log").read_text()
            assert "did not answer within trainer.timeout_minutes" in said
            assert "growlm/training" not in said  # no traceback of ours
        assert f"To resume: python -m growlm.train resume={run_dir}" in (
            tmp_path / "node_0.log"
        ).read_text().replace("\n", "")

        nodes.join()
        again = [nodes.torchrun(n, tmp_path, *train, f"resume={run_dir}", limit) for n in (0, 1)]
        assert [process.wait(timeout=300) for process in again] == [0, 0]
    tiny_run(tmp_path / "alone", *SETTINGS)
    assert largest_difference(tmp_path / "alone", run_dir) < 1e-5
