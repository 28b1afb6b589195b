"""What it takes to reach a loss."""

import math

import pytest
from growth_study.costs import (
    MAX_EXTRAPOLATION,
    Line,
    Reading,
    compute_seconds,
    compute_seconds_at,
    measured_speeds,
)
from hypothesis import given
from hypothesis import strategies as st


@given(
    start=st.floats(0.5, 5),
    slope=st.floats(0.01, 1),
    costs=st.lists(st.integers(1, 100), min_size=2, max_size=5, unique=True),
    wanted=st.floats(0.5, 200),
)
def test_on_a_line_over_the_logarithm_it_is_exact(start, slope, costs, wanted):
    line = Line([(float(cost), start - slope * math.log(cost)) for cost in costs])
    target = start - slope * math.log(wanted)
    found = line.cost_to(target)
    if wanted < min(costs) * (1 - 1e-6):
        assert found == Reading(float(min(costs)), "≤")
    elif wanted > MAX_EXTRAPOLATION * max(costs) * (1 + 1e-6):
        assert found is None
        assert line.loss_at(wanted) is None
    elif min(costs) * (1 + 1e-6) < wanted < MAX_EXTRAPOLATION * max(costs) * (1 - 1e-6):
        assert found.value == pytest.approx(wanted, rel=1e-6)
        assert line.loss_at(wanted).value == pytest.approx(target, abs=1e-6)
        if abs(wanted / max(costs) - 1) > 1e-6:
            assert found.sign == line.loss_at(wanted).sign == ("≈" if wanted > max(costs) else "")


def test_losses_that_rise_lead_nowhere():
    assert Line([(1.0, 2.0), (2.0, 2.5)]).cost_to(1.0) is None


def test_no_single_run_decides():
    """The line is the nearest one to all runs."""
    costs = (1.0, math.e, math.e**2)
    line = Line([(cost, loss) for cost, loss in zip(costs, (3.0, 2.3, 1.0), strict=True)])
    assert line.slope == pytest.approx(-1.0)
    assert line.loss_at(math.e).value == pytest.approx(2.1)


PHASES = [
    {"name": "a", "parameters": 5, "active": 5, "tokens": 100, "flops": 1000, "seconds": 2.0},
    {"name": "b", "parameters": 9, "active": 7, "tokens": 50, "flops": 3000, "seconds": 3.0},
]
RECORD = {"phases": PHASES, "boundaries": [{"to": "b", "seconds": 0.5}]}


def test_seconds_are_of_the_models_and_not_of_the_moment():
    slow, fast = ({"phases": [{**PHASES[0], "seconds": x}], "boundaries": []} for x in (40.0, 1.5))
    # What was trained once counts once, in however many records it is.
    speeds = measured_speeds([slow, slow, slow, RECORD, RECORD, fast, {"loss": None}])
    assert speeds == {(5, 5): 0.02, (9, 7): 0.06}
    assert compute_seconds(slow, speeds) == 2.0
    assert compute_seconds(RECORD, speeds) == 5.5
    assert compute_seconds_at(RECORD, speeds, [0, 500, 1000, 2500, 4000]) == [
        0.0,
        1.0,
        2.0,
        4.0,
        5.5,
    ]
