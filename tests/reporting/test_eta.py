"""Time left: the planner's word at first, then what was seen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growlm.reporting.console.eta import EtaEstimator


def phase(name, steps, step, growth=0.0):
    return {
        "name": name,
        "steps": steps,
        "seconds": {"step": step, "training": step * steps, "validation": 1.0, "growth": growth},
    }


@given(pace=st.floats(0.1, 10), small=st.integers(5, 50), large=st.integers(5, 50))
def test_a_machine_that_is_slower_than_planned_by_a_factor(pace, small, large):
    now = [0.0]
    clock = EtaEstimator(
        [phase("small", small, 0.1), phase("large", large, 0.7, 5.0)], lambda: now[0]
    )
    assert clock.seconds_remaining == pytest.approx(1 + 0.1 * small + 6 + 0.7 * large)
    shares = []
    for name, steps, step, around in (("small", small, 0.1, 1.0), ("large", large, 0.7, 6.0)):
        now[0] += pace * around
        for number in range(1, steps + 1):
            now[0] += pace * step
            clock.step_finished(name, number)
            shares.append(clock.fraction_done)
            if len(shares) > 1:
                whole = pace * clock.planned_seconds
                assert clock.seconds_remaining == pytest.approx(whole - now[0], rel=1e-6, abs=1e-6)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)


def test_a_phase_slower_than_the_one_before():
    now = [0.0]
    clock = EtaEstimator([phase("small", 10, 1.0), phase("large", 10, 1.0)], lambda: now[0])
    for number in range(1, 11):
        now[0] += 1.0
        clock.step_finished("small", number)
    for number in range(1, 6):
        now[0] += 3.0
        clock.step_finished("large", number)
    assert clock.seconds_remaining == pytest.approx(15.0)
