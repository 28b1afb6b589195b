"""`optimizer=adamw_8bit`: torchao's step, and everything that other optimizers' state goes through.

Most tests run torchao's step as it is written: compiling it takes longer than they do, and changes no result here.
"""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from growlm import plan as plan_command
from growlm.checkpoint import read_optimizer_states
from growlm.checkpoint.offline_growth import grow_checkpoint
from growlm.config import load_config
from growlm.config.phase_plan import make_plan
from growlm.growth import Deepen, Upcycle, Widen, build_growth_map, grow_optimizer_state
from growlm.growth.optimizer_state import MOMENT_OF_SCALE_KEY, convert_moments
from growlm.model import ModelConfig, TransformerLM
from growlm.optim import adamw_8bit
from growlm.optim.adamw_8bit import AdamW8bit
from growlm.optim.optimizer_factory import build_optimizer, expected_state_entries
from growlm.optim.optimizer_states import get_optimizer_states
from growlm.planner import forecast as planner
from growlm.planner.memory_estimate import optimizer_state_bytes
from growlm.runtime.errors import UserError
from growlm.runtime.hardware import Machine
from growlm.runtime.torchao_notices import suppress_torchao_notices
from growlm.training import Interrupted, run_plan
from tests.model.tiny_models import EXPERTS, tiny_config
from tests.training.stopping import SignalAt, assert_same_run
from tests.training.test_pretrained import DENSE_ONLY
from tests.training.tiny_run import TINY_PLAN, config_from, rows, tiny_run
from tests.training.tiny_run import tiny_config as run_config

MODEL = ("model.d_model=64", "model.head_dim=16", "model.d_ff=64", "model.n_layers=2")
SETTINGS = (
    "optimizer=adamw_8bit",
    *MODEL,
    "checkpoint.save_optimizer=true",
    "phases.wide.optimizer_state=asymmetric",
)
SHAPE = {"d_model": 64, "n_heads": 4, "n_kv_heads": 4, "head_dim": 16, "d_ff": 128}


@pytest.fixture
def as_written():
    """torch.compile is told to compile nothing."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of four phases: moments are carried, at one boundary for the old entries only."""
    torch.compiler.set_stance("force_eager")
    try:
        return tiny_run(tmp_path_factory.mktemp("whole") / "run", *SETTINGS).run_dir
    finally:
        torch.compiler.set_stance("default")


def with_gradients(shapes, seed=0):
    torch.manual_seed(seed)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape)
    return parameters


def largest_difference_from_torchao(shapes, steps, block_size=256):
    """Of parameters stepped in parts, from the same ones stepped by torchao whole; codes and scales are equal."""
    with suppress_torchao_notices():
        from torchao.optim import AdamW8bit as TorchaoAdamW8bit
    ours, theirs = with_gradients(shapes), with_gradients(shapes)
    groups = [
        [{"params": p[::2], "weight_decay": 0.1}, {"params": p[1::2], "weight_decay": 0.0}]
        for p in (ours, theirs)
    ]
    optimizers = [
        AdamW8bit(groups[0], 1e-2, (0.9, 0.95), 1e-8),
        TorchaoAdamW8bit(groups[1], 1e-2, (0.9, 0.95), 1e-8, block_size=block_size),
    ]
    for step in range(steps):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p) * 10.0**-step
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            with suppress_torchao_notices():
                optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        mine, torchaos = optimizers[0].state[p], optimizers[1].state[q]
        assert mine["step"] == torchaos["step"] == steps
        for entry in ("exp_avg", "exp_avg_sq"):
            if f"{entry}_scale" in mine:
                assert torch.equal(mine[entry], torchaos[entry].codes)
                assert torch.equal(mine[f"{entry}_scale"], torchaos[entry].scale)
            else:
                assert type(torchaos[entry]) is torch.Tensor
    return [(p - q).abs().max().item() for p, q in zip(ours, theirs, strict=True)]


def test_a_step_in_parts_is_torchaos_step_to_the_bit(as_written):
    shapes = [(3, 96, 256), (128, 160), (17, 256), (16, 16, 16), (100,), (257, 63)]
    *large, small, odd = largest_difference_from_torchao(shapes, 4)
    assert large == [0, 0, 0, 0]
    assert max(small, odd) < 1e-6  # torch's fused AdamW rounds in another order


def test_smaller_blocks_are_torchaos_too(as_written):
    assert largest_difference_from_torchao([(257, 64), (1025, 64)], 3, block_size=64) == [0, 0]


@pytest.mark.slow
def test_the_compiled_step_in_parts_is_torchaos_to_the_bit():
    assert largest_difference_from_torchao([(20, 4096), (16, 256)], 4) == [0, 0]


def test_parts_are_whole_blocks_and_cover_the_tensor():
    for entries in (4096, 4160, 16384, 20480, 65536, 262_400, 598_336, 71936):
        parts = list(adamw_8bit._parts(torch.zeros(entries)))
        assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
        assert parts[-1].stop == entries
        assert all(part.start % 256 == 0 and part.stop - part.start >= 4096 for part in parts)


def test_models_of_whole_multiples_of_64_need_three_kernels():
    sizes = set()
    for width in range(64, 1024 + 1, 64):
        for other in (width, 3 * width, 4 * width):
            parts = adamw_8bit._parts(torch.zeros(width, other))
            sizes |= {part.stop - part.start for part in parts}
    assert sizes == {4096, 16_384, 262_144}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["reset", "asymmetric"])
def test_other_modes(tmp_path, mode, as_written):
    later = [f"phases.{phase}.optimizer_state={mode}" for phase in ("moe", "wide", "deep")]
    run = tiny_run(tmp_path / "run", *SETTINGS, *later)
    assert all(boundary.report for boundary in run.summary.boundaries)
    assert run.summary.phases[-1].val_loss < run.summary.phases[0].initial_val_loss


def test_what_a_run_keeps_is_in_8_bits(whole, tmp_path):
    kept = read_optimizer_states(whole / "checkpoints" / "large_moe_final")
    config = make_plan(run_config(tmp_path, *SETTINGS), 257).phases[-1].model_config
    assert {name: set(state) - {"step"} for name, state in kept.items()} == {
        name: set(entries) for name, entries in expected_state_entries(config, "adamw_8bit").items()
    }
    assert kept["blocks.0.attention.query.weight"]["exp_avg"].dtype == torch.uint8


def test_losses_are_close_to_adamws(whole, tmp_path):
    tiny_run(tmp_path / "adamw", *SETTINGS[1:])
    pairs = list(zip(rows(whole), rows(tmp_path / "adamw"), strict=True))
    assert pairs
    for eight_bit, plain in pairs:
        if "loss" in plain:
            assert eight_bit["loss"] == pytest.approx(plain["loss"], rel=0.01)


def test_exact_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"optimizer_state=exact: optimizer=adamw_8bit does not support"
    ):
        tiny_run(tmp_path / "run", *SETTINGS, "phases.wide.optimizer_state=exact")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stops", [(8,), pytest.param((6, 8, 10), marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_to_the_bit(stops, whole, tmp_path, as_written):
    """At a boundary, and in the middle of phases: moments lie on the disk in between."""
    run_dir, resume = tmp_path / "run", f"resume='{tmp_path / 'run'}'"
    for step in stops:
        resuming = [resume] if run_dir.exists() else []
        with pytest.raises(Interrupted):
            run_plan(run_config(run_dir, *SETTINGS, *resuming), [SignalAt(step)])
    resumed = run_plan(run_config(run_dir, *SETTINGS, resume)).run_dir
    assert_same_run(whole, resumed)
    for name in ("medium_moe_final", "large_moe_final"):
        one, other = (read_optimizer_states(run / "checkpoints" / name) for run in (whole, resumed))
        assert one.keys() == other.keys()
        for parameter, state in one.items():
            assert all(torch.equal(state[entry], other[parameter][entry]) for entry in state)


def test_an_artefact_grows_on_disk_as_in_memory(whole, tmp_path):
    source = whole / "checkpoints" / "dense_model"
    operators = [
        Upcycle(4),
        Widen(d_model=80, n_heads=5, new_channels="copies"),
        Deepen(init="identity"),
    ]
    growth_map = grow_checkpoint(source, tmp_path / "grown", operators)
    expected = grow_optimizer_state(growth_map, read_optimizer_states(source), "carry")
    found = read_optimizer_states(tmp_path / "grown")
    assert found.keys() == expected.keys()
    for parameter, state in expected.items():
        assert found[parameter].keys() == state.keys()
        assert all(torch.equal(found[parameter][entry], state[entry]) for entry in state)
    assert any(MOMENT_OF_SCALE_KEY.keys() & state.keys() for state in found.values())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda state: state.pop("exp_avg_scale"),
            "exp_avg of .* has unexpected dtype torch.uint8",
        ),
        (lambda state: state.update(exp_avg_scale=torch.ones(3)), r"has shape \(3,\); must be"),
        (lambda state: state.pop("exp_avg"), "'exp_avg_scale' of .* is of an unknown kind"),
    ],
)
def test_a_state_in_8_bits_that_does_not_fit_is_named(whole, tmp_path, spoil, message):
    from growlm.checkpoint import load_model, save_model

    source = whole / "checkpoints" / "dense_model"
    states = {
        name: {entry: value.clone() for entry, value in state.items()}
        for name, state in read_optimizer_states(source).items()
    }
    spoil(states["blocks.0.attention.query.weight"])
    save_model(load_model(source)[0], tmp_path / "spoilt", {}, states)
    with pytest.raises(UserError, match=message):
        grow_checkpoint(tmp_path / "spoilt", tmp_path / "grown", [Upcycle(4)])
    assert not (tmp_path / "grown").exists()


@pytest.mark.parametrize("after", ["adamw", "adamw_8bit"])
def test_a_run_goes_on_with_the_state_of_either(after, whole, tmp_path, as_written):
    before = whole
    if after == "adamw_8bit":
        before = tiny_run(tmp_path / "before", *SETTINGS[1:], *DENSE_ONLY).run_dir
    settings = (*DENSE_ONLY, "checkpoint.save_optimizer=true", f"optimizer={after}")
    source = before / "checkpoints" / "dense_model"
    run_plan(config_from(source, tmp_path / "run", *settings, "phases.dense.steps=0"))
    found = read_optimizer_states(tmp_path / "run" / "checkpoints" / "dense_model")
    expected = read_optimizer_states(source)
    assert found.keys() == expected.keys()
    for name, state in expected.items():
        state = convert_moments(state, after == "adamw_8bit")
        assert found[name].keys() == state.keys()
        assert all(torch.equal(found[name][entry], state[entry]) for entry in state)


@pytest.mark.parametrize("shape", [{}, EXPERTS], ids=["dense", "experts"])
def test_state_is_counted_to_the_byte(shape, as_written):
    config = tiny_config(**SHAPE, **shape)
    model = TransformerLM(config)
    optimizer = build_optimizer(model, load_config("optimizer=adamw_8bit").optimizer, 1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = get_optimizer_states(model, [optimizer])
    held = sum(v.nbytes for s in states.values() for e, v in s.items() if e != "step")
    assert optimizer_state_bytes(config, "adamw_8bit") == held


def test_large_models_need_two_bytes_a_parameter():
    config = ModelConfig(
        vocab_size=50257, d_model=512, n_layers=12, n_heads=8, n_kv_heads=8, head_dim=64, d_ff=2048
    )
    parameters = sum(
        torch.Size(s).numel() for s in build_growth_map(config, []).old_shapes.values()
    )
    assert optimizer_state_bytes(config, "adamw") == 8 * parameters
    assert optimizer_state_bytes(config, "adamw_8bit") < 2.05 * parameters


def test_no_gradient_no_step(as_written):
    parameters = with_gradients([(64, 64), (10,)])
    before = [p.detach().clone() for p in parameters]
    optimizer = AdamW8bit([{"params": parameters, "weight_decay": 0.1}], 1e-2, (0.9, 0.95), 1e-8)
    for parameter in parameters:
        parameter.grad = None
    optimizer.step()
    assert all(torch.equal(p.detach(), b) for p, b in zip(parameters, before, strict=True))
    assert not optimizer.state[parameters[0]]


def test_a_scheduler_reaches_both(as_written):
    parameters = with_gradients([(64, 64), (10,)])
    optimizer = AdamW8bit([{"params": parameters, "weight_decay": 0.1}], 1e-2, (0.9, 0.95), 1e-8)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = [p.detach().clone() for p in parameters]
    optimizer.step()
    schedule.step()
    assert all(torch.equal(p.detach(), b) for p, b in zip(parameters, before, strict=True))


def no_torchao(name):
    raise PackageNotFoundError(name)


MISSING = {
    "torchao": (("optim.adamw_8bit.version", no_torchao), r"pip install 'growlm\[torchao\]'"),
    "another torchao": (
        ("optim.adamw_8bit.version", lambda name: "0.12.0"),
        "torchao 0.18.*, but 0.12.0 is installed",
    ),
    "headers": (
        ("runtime.optional_packages.sysconfig.get_paths", lambda: {"include": "/nowhere"}),
        "no Python.h in /nowhere",
    ),
    "compiler": (None, "needs a C.. compiler on a CPU, but no-such-compiler was not found"),
}


@pytest.fixture(params=MISSING)
def missing(request, monkeypatch):
    """A machine on which something is missing, and what is then said."""
    change, message = MISSING[request.param]
    if change is None:
        monkeypatch.setenv("CXX", "no-such-compiler")
    else:
        monkeypatch.setattr(f"growlm.{change[0]}", change[1])
    return message


def test_what_is_missing_is_named_before_anything_is_written(
    missing, tmp_path, monkeypatch, capsys
):
    with pytest.raises(UserError, match=f"optimizer.name=adamw_8bit: .*{missing}") as refused:
        tiny_run(tmp_path / "run", *SETTINGS)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(sys, "argv", ["growlm.plan", "optimizer=adamw_8bit"])
    with pytest.raises(SystemExit) as ended:
        plan_command.main()
    assert ended.value.code == 2
    assert str(refused.value) in capsys.readouterr().err


def offered(config):
    machine = Machine("cpu", "bf16-mixed", 10**9)
    changes = planner._candidate_changes(config, make_plan(config, 257).phases, machine)
    return [override for change in changes for override in change.overrides]


def test_it_is_offered_where_it_can_run():
    assert "optimizer=adamw_8bit" in offered(load_config())
    assert "optimizer=adamw_8bit" not in offered(load_config("optimizer=adamw_8bit"))


def test_it_is_not_offered_where_it_cannot_run(missing):
    assert "optimizer=adamw_8bit" not in offered(load_config())


@pytest.mark.slow
def test_the_command_compiles_and_says_nothing_of_it_but_that(tmp_path):
    """The one default test that pays for the compiler: a real run of one kernel, warnings being errors."""
    one_kernel = "model.d_model=66"  # all matrices are 64 by 66 or the other way round; the embedding is plain
    overrides = [
        *SETTINGS[:-1], one_kernel, *TINY_PLAN, *DENSE_ONLY, "logger=none", f"run_dir='{tmp_path}/run'",
    ]  # fmt: skip
    warnings = ["-W", "error", "-W", "ignore::ResourceWarning"]
    done = subprocess.run(
        [sys.executable, *warnings, "-m", "growlm.train", *overrides],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "compiling the optimizer's step" in done.stdout
    assert "ailed to load" not in done.stdout
    losses = [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_compiled_runs_resume_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(adamw_8bit, "CPU_PART_SIZES", (4096,))  # one kernel
    whole = tiny_run(tmp_path / "whole", *SETTINGS).run_dir
    with pytest.raises(Interrupted):
        run_plan(run_config(tmp_path / "run", *SETTINGS), [SignalAt(10)])
    run_plan(run_config(tmp_path / "run", *SETTINGS, f"resume='{tmp_path / 'run'}'"))
    assert_same_run(whole, tmp_path / "run")
