"""The learning rate of a report's plot: from the schedule, at steps that no row tells of."""

import pytest

from growlm.reporting.html.lr_curve import build_lr_curve
from growlm.reporting.reading.history_reader import History
from growlm.reporting.reading.run_files import Run

WSD = {"name": "wsd", "warmup_steps": 10, "decay_fraction": 0.5, "final_fraction": 0.0}


def make_run(schedule, rates, phases=(("a", 40), ("b", 60)), **settings):
    """A run of 100 steps with a row for each step in `rates`; the second phase has half the first one's rate."""
    first = dict(phases)["a"]
    rows = [
        {
            "phase": "a" if step <= first else "b",
            "global_step": step,
            "tokens": 7 * step,
            "flops": 11 * step,
            "time_s": step / 2,
            "lr": rate,
        }
        for step, rate in rates.items()
    ]
    plan = [
        {"name": name, "steps": steps, "lr": lr}
        for (name, steps), lr in zip(phases, (0.2, 0.1), strict=True)
    ]
    return Run(
        folder=None,
        name="run",
        config={"schedule": schedule, "phases": {name: settings for name, _ in phases}},
        plan=plan,
        history=History(rows=rows),
    )


def test_the_curve_bends_where_the_schedule_does():
    rates = {1: 0.02, 30: 0.2, 40: 0.2, 41: 0.1, 100: 0.1 / 50}
    curve = build_lr_curve(make_run(WSD, rates))
    points = dict(zip(curve["step"], curve["lr"], strict=True))
    assert curve["logged"] == []
    assert {step: points.get(step) for step in (1, 10, 40, 41, 51, 100)} == pytest.approx(
        {1: 0.02, 10: 0.2, 40: 0.2, 41: 0.1, 51: 0.1, 100: 0.002}
    )
    assert len(points) < 9
    assert curve["tokens"] == [7 * step for step in curve["step"]]
    assert curve["seconds"] == [step / 2 for step in curve["step"]]


def test_a_rate_that_no_shipped_schedule_explains_is_as_logged():
    rates = {1: 0.02, 30: 0.2, 40: 0.2, 41: 0.1, 60: 0.077, 100: 0.0}
    curve = build_lr_curve(make_run(WSD, rates))
    assert curve["logged"] == ["b"]
    assert dict(zip(curve["step"], curve["lr"], strict=True))[60] == 0.077
    assert build_lr_curve(make_run({"name": "own", "_target_": "x.y"}, rates))["logged"] == [
        "a",
        "b",
    ]


@pytest.mark.parametrize("schedule", [None, "wsd", {"name": ["wsd"]}, {"name": "wsd"}])
def test_settings_that_make_no_sense_are_no_error(schedule):
    assert build_lr_curve(make_run(schedule, {1: 0.5, 2: None, 3: 1e99}))["logged"]


def test_without_rates_there_is_no_curve():
    assert build_lr_curve(make_run(WSD, {1: None})) is None


def test_cosine_is_followed_closely():
    from growlm.optim.schedule_formulas import (
        PhasePosition,
        ScheduleNumbers,
        compute_shipped_factor,
    )

    numbers, position = ScheduleNumbers(0, 0.2, 0.1), PhasePosition(0, 100, 100, 0)
    rates = {
        step: 0.2 * compute_shipped_factor("cosine", numbers, position, step - 1)
        for step in range(1, 101)
    }
    schedule = {"name": "cosine", "final_fraction": 0.1}
    curve = build_lr_curve(make_run(schedule, rates, phases=(("a", 100), ("b", 0))))
    assert curve["logged"] == []
    assert 5 < len(curve["step"]) < 40
    for step, rate in zip(curve["step"], curve["lr"], strict=True):
        assert rate == pytest.approx(rates[step], rel=1e-4)
