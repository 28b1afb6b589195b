"""A plan on two processes is the plan on one: every loss of every phase, over all boundaries."""

import json

import pytest

from growlm.training import run_plan
from tests.distributed.on_devices import (
    PROGRAM,
    history,
    largest_difference,
    loss_differences,
    outcome,
    run_all,
    start,
)
from tests.training.tiny_run import tiny_config

EVERY_STEP = ["callbacks.log_every=1", "trainer.validation_sequences=6"]
SHORT = [f"phases.{phase}.steps=2" for phase in ("dense", "moe", "wide", "deep")]
TWO_PHASES = ["~phases.wide", "~phases.deep"]
DENSE = [*EVERY_STEP, "~phases.moe"]
LLAMA = [
    "model.norm.kind=rmsnorm",
    "model.feed_forward.kind=swiglu",
    "model.bias=false",
    "model.n_kv_heads=1",
]
MODES = ("carry", "reset", "exact", "asymmetric")


def in_mode(mode, phases=("moe", "wide", "deep")):
    return [f"phases.{phase}.optimizer_state={mode}" for phase in phases]


@pytest.fixture
def on_both(tmp_path):
    """Folders of runs on one process and on two, by name."""

    def run(settings, strategy="ddp"):
        jobs = [
            [str(tmp_path / f"{name}_2"), *overrides, f"trainer.strategy={strategy}"]
            for name, overrides in settings.items()
        ]
        run_all(jobs)
        for name, overrides in settings.items():
            run_plan(tiny_config(tmp_path / f"{name}_1", *overrides))
        return {name: (tmp_path / f"{name}_1", tmp_path / f"{name}_2") for name in settings}

    return run


def first_changed_choice(one, other):
    """The first (phase, step) at which an expert got another share of the tokens; None if there is none."""
    for mine, theirs in zip(history(one), history(other), strict=True):
        if mine.get("expert_loads") != theirs.get("expert_loads"):
            return mine["phase"], mine["step"]
    return None


def assert_equal_until_a_choice_changes(one, other, tolerance):
    """In fp32 a token between two experts may be sent to the other one; from there on runs differ."""
    changed = first_changed_choice(one, other)
    print(f"first changed choice of an expert: {changed}")
    for place, difference in loss_differences(one, other).items():
        if place == changed:
            return
        assert difference < tolerance, place


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ([*EVERY_STEP, *SHORT[:2], *TWO_PHASES, "trainer.precision=64-true"], 1e-7),
        pytest.param(
            [*EVERY_STEP, *SHORT, "trainer.precision=64-true"], 1e-7, marks=pytest.mark.slow
        ),
        pytest.param([*DENSE, "trainer.precision=32-true"], 1e-5, marks=pytest.mark.slow),
    ],
    ids=["two phases, fp64", "four phases, fp64", "dense, fp32"],
)
def test_ddp_trains_as_one_process_does(on_both, settings, tolerance):
    runs = on_both({"run": settings})
    assert largest_difference(*runs["run"]) < tolerance
    name = "moe_model_final" if "~phases.deep" in settings else "large_moe_final"
    one, two = (run / "checkpoints" / name for run in runs["run"])
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}


@pytest.mark.slow
def test_accumulated_batches_and_uneven_validation(on_both):
    accumulate = [f"phases.{phase}.accumulate=2" for phase in ("dense", "moe", "wide", "deep")]
    settings = [
        *EVERY_STEP,
        *accumulate,
        "trainer.validation_sequences=5",
        "model.routing.z_weight=1e-3",
    ]
    runs = on_both({"run": [*settings, "trainer.precision=64-true"]})
    assert largest_difference(*runs["run"]) < 1e-7


@pytest.mark.slow
def test_processes_that_grew_different_models_stop(tmp_path):
    ended = outcome(start([PROGRAM, json.dumps([[str(tmp_path / "run"), "OneApart"]])]))
    for rank, (code, _, errors) in enumerate(ended):
        assert code == 1, errors
        assert "final_norm.weight on rank 1 differs from rank 0" in errors, rank


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_loss_of_one_process_that_is_nan(strategy, tmp_path):
    settings = ["OneNaN", f"trainer.strategy={strategy}", "callbacks.log_every=1"]
    run_all([[str(tmp_path / "skips"), *settings, "trainer.on_nonfinite=skip"]])
    skipped = [row["step"] for row in history(tmp_path / "skips") if row.get("event") == "warning"]
    assert skipped == [2, 2, 2, 2]
    for code, _, errors in outcome(
        start([PROGRAM, json.dumps([[str(tmp_path / "stops"), *settings]])])
    ):
        assert code == 1
        assert "phase dense, step 2: the gradient of embedding.weight holds NaN" in errors


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_phase_that_only_grows_and_streamed_documents(strategy, on_both, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Document {i} says {i * i} and then {i**3}." for i in range(3000)))
    streamed = ["data=text", f"data.path={text}", "data.streaming=true", "data.shuffle_window=100"]
    settings = {
        "untrained": [*EVERY_STEP, "trainer.precision=64-true", "phases.wide.steps=0"],
        "streamed": [
            *EVERY_STEP,
            "trainer.precision=64-true",
            "data.validation_every=30",
            *streamed,
        ],
        "apart": [
            *EVERY_STEP,
            "trainer.precision=64-true",
            "data.validation_every=30",
            "data.document_mask=true",
            "trainer.activation_checkpointing=true",
            *streamed,
        ],
    }
    for name, runs in on_both(settings, strategy).items():
        assert largest_difference(*runs) < 1e-7, name


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("family", [[], LLAMA], ids=["default", "llama"])
def test_every_optimizer_state_on_two_processes(strategy, family, on_both):
    settings = [*EVERY_STEP, *family]
    dense = {
        f"dense {mode}": [
            *DENSE,
            *family,
            *in_mode(mode, ("wide", "deep")),
            "trainer.precision=32-true",
        ]
        for mode in MODES
    }
    exact = {
        f"moe {mode}": [*settings, *in_mode(mode), "trainer.precision=64-true"] for mode in MODES
    }
    single = {
        f"moe fp32 {mode}": [*settings, *in_mode(mode), "trainer.precision=32-true"]
        for mode in MODES
    }
    runs = on_both(dense | exact | single, strategy)
    for mode in MODES:
        assert largest_difference(*runs[f"dense {mode}"]) < 1e-5, mode
        assert largest_difference(*runs[f"moe {mode}"]) < 1e-7, mode
        assert_equal_until_a_choice_changes(*runs[f"moe fp32 {mode}"], 1e-5)
