"""Learning-rate schedules of the user's own: functions, callable objects and torch's schedulers."""

import math

import pytest
import torch

from growlm.config.schema import ScheduleConfig
from growlm.optim.own_schedule import check_own_schedule, compute_own_factor
from growlm.runtime.errors import UserError
from growlm.training import run_plan
from tests.training.stopping import assert_same_run
from tests.training.test_resume import stopped_and_resumed
from tests.training.tiny_run import rows, tiny_config

PACKAGE = """
def power(step, num_steps, power=1.0):
    return (1 - step / num_steps) ** power

class Power:
    def __init__(self, power):
        self.power = power
    def __call__(self, step, num_steps):
        return power(step, num_steps, self.power)

def negative(step, num_steps):
    return -1.0

def fails_at_the_end(step, num_steps):
    return 1 / (num_steps - 1 - step)

def takes_nothing():
    return 1.0
"""


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    (tmp_path / "package_of_schedules.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)


def settings(target, **arguments):
    target = target if "." in target else f"package_of_schedules.{target}"
    return ScheduleConfig(name="own", _target_=target, arguments=arguments)


@pytest.mark.parametrize("name", ["power", "Power"])
def test_a_function_or_object_gives_the_factor(name):
    factors = [compute_own_factor(settings(name, power=2), step, 10) for step in range(10)]
    assert factors == [(1 - step / 10) ** 2 for step in range(10)]


def test_positional_arguments_stand_behind_the_step_and_the_number_of_steps():
    assert compute_own_factor(settings("power", _args_=[2]), 1, 10) == (1 - 1 / 10) ** 2


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("CosineAnnealingLR", {"T_max": 7}),
        ("OneCycleLR", {"max_lr": 2.0, "total_steps": 21, "cycle_momentum": False}),
        ("MultiStepLR", {"milestones": [3, 9], "gamma": 0.5}),
        ("PolynomialLR", {"total_iters": 12, "power": 2.0}),
    ],
)
def test_a_torch_scheduler_gives_the_rates_it_would_give(name, arguments):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **arguments)
    chosen = settings(f"torch.optim.lr_scheduler.{name}", **arguments)
    for step in range(20):
        rate = optimizer.param_groups[0]["lr"]
        assert compute_own_factor(chosen, step, 20) == rate
        optimizer.step()
        scheduler.step()


OVERRIDES = (
    "schedule._target_=package_of_schedules.power",
    "schedule.power=2",
    "schedule.warmup_steps=2",
)


def test_a_run_has_its_rates_and_resumes_to_the_bit(tmp_path):
    whole = run_plan(tiny_config(tmp_path / "whole", *OVERRIDES, "callbacks.log_every=1"))
    config = tiny_config(tmp_path / "whole", *OVERRIDES)
    for row in rows(whole.run_dir):
        step = row["global_step"] - 1
        base = config.phases[row["phase"]].lr
        warmup = min(1, (step + 1) / 2)
        phase_step, length = row["step"] - 1, config.phases[row["phase"]].warmup_steps
        warmup *= min(1, (phase_step + 1) / length) if length else 1
        assert math.isclose(row["lr"], base * warmup * (1 - step / 16) ** 2)
    resumed = stopped_and_resumed(tmp_path / "run", (*OVERRIDES, "callbacks.log_every=1"), 6)
    assert_same_run(whole.run_dir, resumed.run_dir)


@pytest.mark.parametrize(
    ("target", "arguments", "key", "reason"),
    [
        ("negative", {}, "schedule._target_", "at least 0; it returned -1.0 for step 0"),
        ("fails_at_the_end", {}, "schedule._target_", "step=9, num_steps=10: .*division by zero"),
        ("takes_nothing", {}, "schedule._target_", "cannot be called with step=0"),
        ("power", {"pwer": 2}, "schedule.pwer", "no such argument; did you mean power"),
        ("Power", {"pwer": 2}, "schedule.pwer", "no such argument; did you mean power"),
        ("power", {"_partial_": True}, "schedule._partial_", "never called; leave it out"),
        ("Power", {}, "schedule", "cannot be instantiated: .*power"),
        (
            "torch.optim.lr_scheduler.ReduceLROnPlateau",
            {},
            "schedule._target_",
            "function of the step",
        ),
        (
            "torch.optim.lr_scheduler.OneCycleLR",
            {"max_lr": 1.0, "total_steps": 20},
            "schedule",
            "cannot be instantiated: .*momentum",
        ),
        ("nothing", {}, "schedule._target_", "there is no such class"),
        ("torch.optim", {}, "schedule._target_", "is neither a class nor a function"),
    ],
)
def test_what_cannot_be_used(target, arguments, key, reason):
    with pytest.raises(UserError, match=reason) as refused:
        check_own_schedule(settings(target, **arguments), 10)
    assert refused.value.key == key
