"""The machine's speed: measured, remembered, used."""

import json
from dataclasses import asdict, replace
from itertools import accumulate

import pytest

from growlm.config.phase_plan import make_plan
from growlm.planner import calibration as module
from growlm.planner.calibration import Calibration, load_or_measure_calibration
from growlm.planner.forecast import forecast_plan
from growlm.planner.meta_trace import PassWorkload
from growlm.planner.time_estimate import Allocation
from growlm.runtime.hardware import Machine
from tests.planner.stand_in_speed import measure_really
from tests.training.tiny_run import tiny_config as run_config
from tests.training.tiny_run import tiny_run

MACHINE = Machine("cpu", "bf16-mixed", 10**9)
SPEED = Calibration(
    half_flops=1e9, single_flops=1e8, other_bytes=1e7, fresh_bytes=1e6, again_bytes=4e6, adamw_entries=1e5,
    call=1e-3,
)  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "growlm"


@pytest.mark.slow
def test_every_rate_is_measured(monkeypatch):
    monkeypatch.setattr(module, "MAX_TIMED_SECONDS", 0.0)
    found = measure_really(MACHINE)
    assert all(value > 0 for value in asdict(found).values())
    assert found.half_flops > 1e8
    assert found.call < 1e-2


def test_it_is_measured_once(cache, monkeypatch):
    measured = []
    monkeypatch.setattr(
        module, "measure_calibration", lambda machine: measured.append(machine) or SPEED
    )
    told = []
    assert [load_or_measure_calibration(MACHINE, lambda: told.append(1)) for _ in range(3)] == [
        SPEED
    ] * 3
    assert measured == [MACHINE]
    assert len(told) == 1
    load_or_measure_calibration(MACHINE, lambda: None, force=True)
    load_or_measure_calibration(replace(MACHINE, precision="32-true"), lambda: None)
    assert len(measured) == 3
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"half_flops": 1}', "no json"])
def test_a_damaged_file_is_measured_again(cache, monkeypatch, text):
    monkeypatch.setattr(module, "measure_calibration", lambda machine: SPEED)
    load_or_measure_calibration(MACHINE, lambda: None)
    (file,) = cache.iterdir()
    file.write_text(text)
    assert load_or_measure_calibration(MACHINE, lambda: None) == SPEED
    assert json.loads(file.read_text()) == asdict(SPEED)


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "measure_calibration", lambda machine: SPEED)
    (tmp_path / "growlm").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_or_measure_calibration(MACHINE, lambda: None) == SPEED


def test_seconds_are_work_over_rates():
    work = PassWorkload(
        0, 0, 0, half_flops=10**9, single_flops=10**8, other_bytes=10**7, num_calls=1000
    )
    assert SPEED.pass_seconds(work) == pytest.approx(4.0)


def test_twice_the_steps_take_twice_as_long(tmp_path):
    def seconds(*overrides):
        config = run_config(tmp_path, *overrides)
        table = forecast_plan(config, make_plan(config, 257), MACHINE)
        return [phase["seconds"] for phase in table.to_json(SPEED)["phases"]]

    once, twice = seconds("phases.wide.steps=10"), seconds("phases.wide.steps=20")
    longer = twice[2]["training"] - once[2]["training"]
    assert longer == pytest.approx(10 * once[2]["step"])
    assert once[0]["growth"] == 0
    assert all(phase["growth"] > 0 for phase in once[1:])
    accumulated = seconds("phases.wide.steps=10", "phases.wide.accumulate=3")[2]["step"]
    assert 2 < accumulated / once[2]["step"] < 3


def test_memory_that_a_run_has_had_comes_at_another_rate(tmp_path):
    assert Allocation.from_peak(100, peak=100, previous_peak=60) == Allocation(40, 60)
    assert Allocation.from_peak(30, peak=100, previous_peak=60) == Allocation(30, 0)
    assert Allocation.from_peak(30, peak=50, previous_peak=60) == Allocation(0, 30)
    assert Allocation(4 * 10**6, 4 * 10**6).estimate_seconds(SPEED) == pytest.approx(4 + 1)

    config = run_config(tmp_path, "phases.moe.batch_size=512")
    costs = forecast_plan(config, make_plan(config, 257), MACHINE).phase_forecasts
    assert costs[0].workload.training_allocation == Allocation(costs[0].memory.training_peak, 0)
    peaks = [cost.memory.peak for cost in costs]
    for cost, had in zip(costs[1:], accumulate(peaks, max), strict=False):
        work, memory = cost.workload, cost.memory
        fits = max(memory.growth_peak, memory.weights + memory.optimizer) <= had
        expected = memory.training_peak - had if fits else memory.training_peak
        assert work.training_allocation.new_bytes == max(0, expected)
        assert (work.growth_allocation.new_bytes == 0) == fits
    assert costs[2].workload.growth_allocation.new_bytes == 0, "less than the phase before took"


def test_a_run_keeps_what_was_said_of_its_time(tmp_path):
    run = tiny_run(tmp_path / "run")
    phases = json.loads((run.run_dir / "plan.json").read_text())
    assert all(phase["seconds"]["step"] > 0 for phase in phases)
    assert run.summary.initial_memory_bytes > 10**8
