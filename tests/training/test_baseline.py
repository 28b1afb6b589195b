"""Baselines: one model from the first step to the last, for the price of the plan."""

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growlm.config import load_config
from growlm.config.phase_plan import make_plan
from growlm.planner import calibration
from growlm.runtime.errors import UserError
from growlm.runtime.hardware import Machine
from growlm.training import Interrupted, phase_runner, run_plan
from growlm.training.baseline import apply_baseline
from tests.training.stopping import SignalAt
from tests.training.tiny_run import TINY, rows, tiny_config

SPEED = calibration.Calibration(1e11, 4e10, 1e10, 2e9, 4e9, 1e8, 1e-5)


def price(plan, unit):
    return sum(phase.num_steps * getattr(phase, f"{unit}_per_step") for phase in plan.phases)


@settings(deadline=None, max_examples=15)
@given(
    kind=st.sampled_from(["scratch", "continue"]),
    unit=st.sampled_from(["flops", "tokens"]),
    factor=st.sampled_from([1.5, 2, 3]),
    batch=st.integers(1, 9),
    accumulate=st.integers(1, 3),
)
def test_the_price_is_the_plans_to_the_nearest_step(kind, unit, factor, batch, accumulate):
    config = load_config(
        *TINY,
        f"baseline={kind}",
        f"baseline.equal={unit}",
        f"growth.scale_factor={factor}",
        f"phases.wide.batch_size={batch}",
        f"phases.deep.accumulate={accumulate}",
    )
    plan = make_plan(config, 257)
    changed = apply_baseline(config, lambda: None)
    (phase,) = make_plan(changed, 257).phases
    one_step = getattr(phase, f"{unit}_per_step")
    assert abs(phase.num_steps * one_step - price(plan, unit)) <= max(one_step / 2, 1)
    expected = plan.phases[-1 if kind == "scratch" else 0]
    assert phase.model_config == expected.model_config
    assert phase.settings.lr == expected.settings.lr
    assert phase.tokens_per_step == expected.tokens_per_step
    assert changed.name == f"quickstart_{kind}"
    assert apply_baseline(changed, lambda: None) is changed


def test_seconds_are_the_planners(monkeypatch):
    monkeypatch.setattr("growlm.training.baseline.load_or_measure_calibration", lambda *_: SPEED)
    monkeypatch.setattr(
        "growlm.training.baseline.detect_machine", lambda _: Machine("cpu", "32-true", 10**10)
    )
    plans = {}
    for kind in ("scratch", "continue"):
        config = load_config(*TINY, f"baseline={kind}", "baseline.equal=seconds")
        (plans[kind],) = apply_baseline(config, lambda: None).phases.values()
    assert plans["continue"].steps > plans["scratch"].steps > 4


def test_a_plan_is_left_as_it_is():
    config = load_config(*TINY)
    assert apply_baseline(config, lambda: None) is config


def test_a_wrong_plan_is_refused_before_it_is_priced():
    config = load_config(*TINY, "baseline=scratch")
    config.phases["dense"].steps = None
    with pytest.raises(UserError, match="steps, tokens, flops"):
        run_plan(config)


def test_a_baseline_runs_and_can_be_resumed(tmp_path):
    config = tiny_config(tmp_path / "run", "baseline=scratch", "trainer.max_time=00:00:00:00")
    with pytest.raises(Interrupted):
        run_plan(config)
    config.trainer.max_time, config.resume = None, str(tmp_path / "run")
    run_dir = run_plan(config).run_dir
    summary = json.loads((run_dir / "summary.json").read_text())
    assert [phase["name"] for phase in summary["phases"]] == ["deep"]
    steps = apply_baseline(config, lambda: None).phases["deep"].steps
    assert rows(run_dir)[-1]["step"] == steps
    assert summary["name"] == "quickstart_scratch"
    assert asdict(config)["baseline"] == {"kind": "scratch", "equal": "flops", "of": None}
    assert "of: quickstart" in (run_dir / "config.yaml").read_text()


def test_seconds_are_those_that_the_run_began_with(tmp_path, monkeypatch):
    settings = ("baseline=continue", "baseline.equal=seconds", "reuse.phases=never")
    speeds = iter([SPEED, replace(SPEED, call=1e-3, half_flops=1e10)])
    monkeypatch.setattr(
        "growlm.training.baseline.load_or_measure_calibration", lambda *_: next(speeds)
    )
    config = tiny_config(tmp_path / "run", *settings)
    begun = apply_baseline(config, lambda: None)
    monkeypatch.setattr(phase_runner, "build_extra_callbacks", lambda _: {"stop": SignalAt(2)})
    with pytest.raises(Interrupted):
        run_plan(begun)
    monkeypatch.undo()
    monkeypatch.setattr(
        "growlm.training.baseline.load_or_measure_calibration", lambda *_: next(speeds)
    )
    resumed = apply_baseline(replace(config, resume=str(tmp_path / "run")), lambda: None)
    assert resumed.phases == begun.phases
    elsewhere = apply_baseline(config, lambda: None)
    assert elsewhere.phases != begun.phases
