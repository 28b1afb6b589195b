"""How long the study's runs are."""

from dataclasses import replace

import pytest
from growth_study.arms import AXES, SHARES
from growth_study.lengths import DECAY, scale_lengths, shorten_run
from hypothesis import given, settings
from hypothesis import strategies as st

from growlm.config import load_config
from growlm.config.phase_plan import make_plan
from growlm.optim.lr_schedule import compute_lr_factor

VOCABULARY = 1024


def planned(axis, factor=1.0, grows_at=None):
    config = scale_lengths(load_config(*axis.overrides), factor, grows_at)
    return config, make_plan(config, VOCABULARY)


def flops(plan):
    return sum(phase.num_steps * phase.flops_per_step for phase in plan.phases)


@settings(deadline=None, max_examples=6)
@given(
    arm=st.sampled_from([(axis, arm) for axis in AXES for arm in axis.grown_arms]),
    shares=st.lists(st.sampled_from(SHARES), min_size=2, max_size=3, unique=True),
    factor=st.floats(0.5, 2.0),
)
def test_shorter_runs_are_longer_ones_until_they_decay(arm, shares, factor):
    config, plan = planned(arm[0], factor, arm[1].grows_at)
    dear = plan.phases[-1].flops_per_step
    phases_so_far = []
    for share in sorted(shares):
        run = shorten_run(config, plan, share, shares)
        own = make_plan(run, VOCABULARY)
        assert abs(flops(own) - share * flops(plan)) <= dear
        *before, decay = own.phases
        assert abs(decay.num_steps * dear - DECAY * share * flops(plan)) <= dear
        assert not decay.operators, "it grows on the plateau"
        assert sum(bool(phase.operators) for phase in before) == len(plan.phases) - 1
        for phase in before:
            rates = [
                compute_lr_factor(run.schedule, own, phase, step) for step in range(phase.num_steps)
            ]
            assert set(rates[run.schedule.warmup_steps if phase is before[0] else 0 :]) == {1.0}
        assert compute_lr_factor(run.schedule, own, decay, 1) < 1.0
        # What another run has trained is trained by this one too, under the same name.
        assert [(p.name, p.settings) for p in before[: len(phases_so_far)]] == phases_so_far
        phases_so_far = [(p.name, p.settings) for p in before]


@pytest.mark.parametrize("grows_at", [0.1, 0.5, 0.8])
def test_the_growth_can_be_moved(grows_at):
    config, plan = planned(AXES[0], grows_at=grows_at)
    source = plan.phases[0]
    assert source.num_steps * source.flops_per_step == pytest.approx(
        grows_at * flops(plan), rel=0.01
    )
    own = make_plan(shorten_run(config, plan, 1.0, (1.0,)), VOCABULARY)
    assert [phase.name for phase in own.phases] == ["source", "grown"]
    schedule = shorten_run(config, plan, 1.0, (1.0,)).schedule
    last = own.phases[0].num_steps - 1
    assert compute_lr_factor(schedule, own, own.phases[0], last) == 1.0, "it grows on the plateau"


def test_a_cosine_is_not_cut():
    config, plan = planned(AXES[0])
    cosine = replace(config, schedule=replace(config.schedule, name="cosine"))
    assert [
        p.name for p in make_plan(shorten_run(cosine, plan, 1.0, (1.0,)), VOCABULARY).phases
    ] == [
        "source",
        "grown",
    ]
