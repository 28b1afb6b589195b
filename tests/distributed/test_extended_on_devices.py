"""A finished run on several processes trains on, under ddp and FSDP2."""

import json

import pytest

from growlm.training import run_plan
from tests.distributed.on_devices import largest_difference, run_all
from tests.training.test_extended_runs import PLAN, without_former_end
from tests.training.tiny_run import tiny_config


@pytest.mark.slow
def test_two_processes_extend_a_run(tmp_path):
    settings = [*PLAN, "~phases.moe", "trainer.precision=64-true"]
    jobs = []
    for strategy in ("ddp", "fsdp"):
        folder = str(tmp_path / strategy)
        begin = [folder, *settings, f"trainer.strategy={strategy}"]
        jobs += [begin, [*begin, f"resume='{folder}'", "phases.dense.steps=8"]]
    run_all(jobs)
    run_plan(tiny_config(tmp_path / "whole", *settings, "phases.dense.steps=8"))
    for strategy in ("ddp", "fsdp"):
        summary = json.loads((tmp_path / strategy / "summary.json").read_text())
        assert summary["phases"][0]["steps"] == 8
        assert (
            largest_difference(without_former_end(tmp_path / strategy), tmp_path / "whole") < 1e-9
        )
