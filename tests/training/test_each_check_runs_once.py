"""A run's config is resolved and checked once, and changed nowhere after that."""

import sys
from collections import Counter
from dataclasses import asdict

import pytest

from growlm.config.phase_plan import make_plan
from growlm.config.validation import check_config
from growlm.planner.forecast import check_plan_fits
from growlm.reporting.loggers.logger_factory import check_logger
from growlm.runtime.hardware import detect_machine
from growlm.training import run_plan
from growlm.training.baseline import apply_baseline
from growlm.training.requirements import check_requirements
from growlm.training.run_setup import build_context, resolve_config
from growlm.training.strategy import resolve_num_devices
from tests.training.tiny_run import tiny_config

ONCE = (
    build_context,
    check_config,
    check_plan_fits,
    check_logger,
    check_requirements,
    detect_machine,
    make_plan,
    resolve_config,
    apply_baseline,
    resolve_num_devices,
)


@pytest.fixture
def watch():
    """Count calls wherever they come from, and keep what `build_context` returns."""
    names = {function.__code__: function.__name__ for function in ONCE}
    calls, contexts = Counter(), []

    def profile(frame, event, returned):
        if frame.f_code in names and event == "call":
            calls[names[frame.f_code]] += 1
        if frame.f_code is build_context.__code__ and event == "return":
            contexts.append((returned, asdict(returned.config)))

    before = sys.getprofile()
    yield lambda: sys.setprofile(profile), calls, contexts
    sys.setprofile(before)


def test_a_run_checks_everything_once_and_changes_nothing_afterwards(tmp_path, watch):
    start, calls, contexts = watch
    config = tiny_config(tmp_path / "run")
    start()
    run_plan(config)
    sys.setprofile(None)
    assert calls == {function.__name__: 1 for function in ONCE}
    ((context, at_first),) = contexts
    assert asdict(context.config) == at_first
    assert context.config.trainer.devices == 1
    assert context.saved_config == config  # what a resume finds is what was asked for
