"""Which runs are done, in which order."""

import pytest
from growth_study.agenda import collect_losses, next_runs, source_rate, tuned_rate
from growth_study.arms import AXES, RATE_GRID, TUNING_SEED

from tests.study.simulated_study import BEST_RATE, simulate_runs


@pytest.fixture(scope="module")
def records():
    return simulate_runs()


def test_nothing_is_done_twice_and_nothing_is_left(records):
    done = [(r["arm"], r["seed"], r["source_rate"], r["rate"], r["share"]) for r in records]
    assert len(done) == len(set(done))
    assert next_runs(AXES, collect_losses(records), []) == []
    for axis in AXES:
        for arm in axis.arms:
            rate = tuned_rate(arm, collect_losses(records))
            found = {
                (r["seed"], r["share"]) for r in records if (r["arm"], r["rate"]) == (arm.key, rate)
            }
            assert found >= {(seed, share) for seed in arm.seeds for share in arm.shares}


@pytest.mark.parametrize("name", BEST_RATE)
def test_the_grid_grows_until_its_best_is_inside(records, name):
    for axis in AXES:
        arm = axis.main_arm(name)
        assert tuned_rate(arm, collect_losses(records)) == BEST_RATE[name]
        tried = {
            r["rate"]
            for r in records
            if (r["arm"], r["share"], r["seed"]) == (arm.key, 1.0, TUNING_SEED)
        }
        assert {*RATE_GRID, BEST_RATE[name] / 2, BEST_RATE[name] * 2} <= tried


def test_changes_differ_from_the_plan_in_nothing_else(records):
    losses = collect_losses(records)
    for axis in AXES:
        for arm in axis.changes:
            assert tuned_rate(arm, losses) == BEST_RATE["grown"]
            assert arm.is_tuned == (arm.is_grown or arm.own_rate)
            assert source_rate(arm, losses) == BEST_RATE["continue"]


def test_rates_are_known_before_they_are_used(records):
    for number, record in enumerate(records):
        arm = next(arm for axis in AXES for arm in axis.arms if arm.key == record["arm"])
        before = collect_losses(records[:number])
        if arm.baseline == "none":
            assert record["source_rate"] == source_rate(arm, before)
        if record["seed"] != TUNING_SEED:
            assert record["rate"] == tuned_rate(arm, before)


def test_what_diverged_is_no_best_rate():
    records = simulate_runs(AXES[:1])
    for record in records:
        if record["rate"] == BEST_RATE["continue"]:
            record["loss"] = None
    arm = AXES[0].main_arm("continue")
    assert tuned_rate(arm, collect_losses(records)) == BEST_RATE["continue"] / 2


def test_what_has_begun_is_left_alone():
    first = next_runs(AXES, {}, [])[0]
    assert all(first[0] not in group for group in next_runs(AXES, {}, first))


def test_where_nothing_converges_it_gives_up():
    records = [{**record, "loss": None} for record in simulate_runs(AXES[:1])]
    assert next_runs(AXES[:1], collect_losses(records), []) == []
