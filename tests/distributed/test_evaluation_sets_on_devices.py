"""All processes measure the same evaluation sets, under ddp and FSDP2, and what they measure is one's own."""

import json

import pytest

from growlm.training import run_plan
from tests.distributed.on_devices import run_all
from tests.training.tiny_run import tiny_config


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path):
    (tmp_path / "validation.txt").write_text("To be or not to be, that is the question.\n\n" * 9)
    (tmp_path / "further.txt").write_text("All the world's a stage.\n\n" * 11)
    settings = [
        "~phases.wide",
        "~phases.deep",
        "trainer.precision=32-true",
        f"data.validation.path={tmp_path}/validation.txt",
        f"data.evaluation_sets.further.path={tmp_path}/further.txt",
    ]
    strategies = ("ddp", "fsdp")
    run_all([[str(tmp_path / s), *settings, f"trainer.strategy={s}"] for s in strategies])
    run_plan(tiny_config(tmp_path / "one", *settings))

    def measured(name):
        phases = json.loads((tmp_path / name / "summary.json").read_text())["phases"]
        further = [
            each[key]["further"][measure]
            for each in phases
            for key in ("initial_evaluation", "evaluation")
            for measure in ("loss", "bits_per_byte")
        ]
        return [*further, *(each["val_loss"] for each in phases)]

    for strategy in strategies:
        assert measured(strategy) == pytest.approx(measured("one"), abs=1e-5)
        (boundary,) = json.loads((tmp_path / strategy / "boundaries.json").read_text())
        assert boundary["evaluation"]["further"]["loss_after"] == measured(strategy)[4]
