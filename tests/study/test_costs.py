"""What it takes to reach a loss."""

import math

import pytest
from growth_study.costs import BEYOND, cost_to, loss_at, measured_speeds, seconds_after, seconds_of
from hypothesis import given
from hypothesis import strategies as st


@given(
    start=st.floats(0.5, 5),
    slope=st.floats(0.01, 1),
    costs=st.lists(st.floats(1, 100), min_size=2, max_size=5, unique_by=lambda c: round(c, 3)),
    wanted=st.floats(0.5, 200),
)
def test_on_a_line_over_the_logarithm_it_is_exact(start, slope, costs, wanted):
    points = [(cost, start - slope * math.log(cost)) for cost in costs]
    target = start - slope * math.log(wanted)
    found = cost_to(points, target)
    if wanted < min(costs) * (1 - 1e-9):
        assert found.bound == "" or (found.value, found.bound) == (min(costs), "at most")
    if min(costs) <= wanted <= max(costs):
        assert found.value == pytest.approx(wanted, rel=1e-6)
        assert loss_at(points, wanted) == pytest.approx(target, abs=1e-9)
    if wanted > max(costs) * (1 + 1e-9):
        if wanted <= BEYOND * max(costs):
            assert found.value == pytest.approx(wanted, rel=1e-6)
            assert found.bound == "about"
        elif wanted > BEYOND * max(costs) * (1 + 1e-9):
            assert found is None


def test_losses_that_rise_lead_nowhere():
    assert cost_to([(1.0, 2.0), (2.0, 2.5)], 1.0) is None
    assert loss_at([(1.0, 2.0)], 1.0) is None


PHASES = [
    {"name": "a", "parameters": 5, "active": 5, "tokens": 100, "flops": 1000, "seconds": 2.0},
    {"name": "b", "parameters": 9, "active": 7, "tokens": 50, "flops": 3000, "seconds": 3.0},
]
RECORD = {"phases": PHASES, "boundaries": [{"to": "b", "seconds": 0.5}]}


def test_seconds_are_of_the_models_and_not_of_the_moment():
    slow = {"phases": [{**PHASES[0], "seconds": 40.0}], "boundaries": []}
    speeds = measured_speeds([RECORD, slow, RECORD, {"loss": None}])
    assert speeds == {(5, 5): 0.02, (9, 7): 0.06}
    assert seconds_of(slow, speeds) == 2.0
    assert seconds_of(RECORD, speeds) == 5.5
    assert seconds_after(RECORD, speeds, [0, 500, 1000, 2500, 4000]) == [0.0, 1.0, 2.0, 4.0, 5.5]
