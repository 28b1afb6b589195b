"""The learning rate of every step, by hand."""

import pytest

from growlm.config import load_config
from growlm.config.phase_plan import make_plan
from growlm.config.schema import ScheduleConfig
from growlm.optim.lr_schedule import compute_lr_factor


def plan_of(*steps, warmups=None):
    names = ("dense", "moe", "wide", "deep")
    overrides = [f"phases.{name}.steps={n}" for name, n in zip(names, steps, strict=True)]
    overrides += [f"phases.{name}.warmup_steps={n}" for name, n in (warmups or {}).items()]
    return make_plan(load_config(*overrides), 257)


def factors(plan, **settings):
    schedule = ScheduleConfig(**settings)
    return [
        compute_lr_factor(schedule, plan, phase, step)
        for phase in plan.phases
        for step in range(phase.num_steps)
    ]


def test_wsd_warms_up_once_and_decays_once():
    got = factors(
        plan_of(5, 5, 5, 5), name="wsd", warmup_steps=4, decay_fraction=0.25, final_fraction=0.0
    )
    assert got[:4] == [0.25, 0.5, 0.75, 1.0]
    assert got[4:16] == [1.0] * 12
    assert got[16:] == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_a_phase_may_warm_up_again():
    got = factors(plan_of(5, 5, 5, 5, warmups={"wide": 2}), name="constant")
    assert got == [1.0] * 10 + [0.5, 1.0] + [1.0] * 8


def test_cosine_begins_anew_in_every_phase():
    got = factors(plan_of(4, 2, 4, 4), name="cosine", final_fraction=0.1)
    assert got[0] == got[4] == got[6] == 1.0
    assert got[2] == pytest.approx(0.55)
    assert got[5] == pytest.approx(0.55)
    assert got[3] < got[2] < got[1]


def test_no_decay():
    assert set(factors(plan_of(2, 2, 2, 2), name="wsd", decay_fraction=0.0)) == {1.0}
