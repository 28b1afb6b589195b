"""`growlm.grow` and `growlm.verify` as commands."""

import signal
import time

import pytest
import torch

from growlm import grow as grow_command
from growlm import verify as verify_command
from growlm.checkpoint import load_model, save_model
from growlm.runtime.errors import UserError
from tests.commands.processes import CommandProcess
from tests.model.tiny_models import EXPERTS, build, tiny_config

WIDEN = "grow=[{widen: {scale_factor: 2}}]"


@pytest.fixture
def small(tmp_path):
    folder = tmp_path / "small, 'old'"
    save_model(build(tiny_config(**EXPERTS), dtype=torch.float32), folder, {})
    return folder


def test_grown_and_verified(run, small, tmp_path):
    large = tmp_path / "large"
    widen = "{scale_factor: 1.5, new_channels: copies}"
    growth = f"grow=[{{widen: {widen}}}, {{deepen: {{extra_layers: 2, placement: stack}}}}]"
    code, out, _ = run(grow_command, f"checkpoint={small}", f"out={large}", growth)
    assert code == 0
    assert "Layer 2 from layer 0" in out
    assert f"Wrote {large}" in out

    code, out, _ = run(verify_command, f"old={small}", f"new={large}")

    assert code == 0
    assert out.splitlines()[-1] == "passed"
    checks = (
        "RoPE integrity",
        "router scaling",
        "symmetry breaking",
        "functional identity",
        "weight integrity",
    )
    lines = [
        next(i for i, line in enumerate(out.splitlines()) if check in line) for check in checks
    ]
    assert lines == sorted(lines)
    assert all("passed" in out.splitlines()[line] for line in lines)


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("feed_forward.router.weight", "router"),
        ("attention.output.weight", "functional"),
        ("feed_forward.experts.down", "functional"),
        ("feed_forward_norm.weight", "functional"),
    ],
)
def test_a_tampered_tensor_fails_the_check_that_guards_it(run, small, tmp_path, name, check):
    run(grow_command, f"checkpoint={small}", f"out={tmp_path / 'large'}", WIDEN)
    model, record = load_model(tmp_path / "large")
    with torch.no_grad():
        model.get_parameter(f"blocks.1.{name}").mul_(1.5)
    save_model(model, tmp_path / "tampered", record)

    code, out, _ = run(verify_command, f"old={small}", f"new={tmp_path / 'tampered'}")

    assert code == 1
    assert out.splitlines()[-1].startswith("failed:")
    assert check in out.splitlines()[-1]
    assert "likely cause" in out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "widen",
    [
        "{scale_factor: 1.5}",
        "{scale_factor: 3}",
        "{scale_factor: 7}",
        "{scale_factor: 2, new_channels: fresh}",
    ],
)
def test_half_precision_with_gains_near_one_passes(run, tmp_path, dtype, widen):
    save_model(build(tiny_config(), std=0.002, dtype=dtype), tmp_path / "small", {})
    large = tmp_path / "large"
    growth = f"grow=[{{widen: {widen}}}]"
    assert run(grow_command, f"checkpoint={tmp_path / 'small'}", f"out={large}", growth)[0] == 0
    code, out, _ = run(verify_command, f"old={tmp_path / 'small'}", f"new={large}")
    assert code == 0, out


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.0])
def test_an_expert_that_no_token_chose_is_checked(run, tmp_path, value):
    save_model(build(tiny_config(), dtype=torch.float32), tmp_path / "small", {})
    growth = "grow=[{upcycle: {num_experts: 16, top_k: 2}}]"
    large = tmp_path / "large"
    run(grow_command, f"checkpoint={tmp_path / 'small'}", f"out={large}", growth)
    model, record = load_model(large)
    with torch.no_grad():
        for block in model.blocks:
            block.feed_forward.router.weight[3] = block.feed_forward.router.weight[0]  # last of two
            block.feed_forward.experts.down[3, 0, 0] = value
    save_model(model, tmp_path / "tampered", record)
    probe = ("probe_sequences=1", "probe_length=2")
    code, out, _ = run(
        verify_command, f"old={tmp_path / 'small'}", f"new={tmp_path / 'tampered'}", *probe
    )
    assert code == 1
    assert "weights" in out.splitlines()[-1]
    assert "experts.down" in out


def test_undeclared_growth_is_inferred(run, small, tmp_path):
    run(grow_command, f"checkpoint={small}", f"out={tmp_path / 'large'}", WIDEN)
    model, _ = load_model(tmp_path / "large")
    save_model(model, tmp_path / "nameless", {})
    assert run(verify_command, f"old={small}", f"new={tmp_path / 'nameless'}")[0] == 0


@pytest.mark.parametrize("noise", ["0", "1e-2"])
def test_half_precision_is_checked_with_its_own_rounding(run, tmp_path, noise):
    save_model(build(tiny_config(**EXPERTS), dtype=torch.bfloat16), tmp_path / "small", {})
    growth = f"grow=[{{widen: {{scale_factor: 1.5, noise_std: {noise}}}}}]"
    assert (
        run(grow_command, f"checkpoint={tmp_path / 'small'}", f"out={tmp_path / 'l'}", growth)[0]
        == 0
    )
    code, out, _ = run(verify_command, f"old={tmp_path / 'small'}", f"new={tmp_path / 'l'}")
    assert "Half-precision weights" in out
    assert code == 0
    model, record = load_model(tmp_path / "l")
    with torch.no_grad():
        model.blocks[0].attention.output.weight.mul_(2)
    save_model(model, tmp_path / "tampered", record)
    assert run(verify_command, f"old={tmp_path / 'small'}", f"new={tmp_path / 'tampered'}")[0] == 1


def test_the_standalone_suite(run):
    start = time.perf_counter()
    code, out, _ = run(verify_command)
    assert code == 0
    assert "all as expected" in out
    assert "larger heads: breaks" in out
    assert time.perf_counter() - start < 120


def test_the_standalone_suite_notices(run, monkeypatch):
    from growlm.growth.transforms.tensor_transforms import Split

    monkeypatch.setattr(Split, "share_exponent", lambda self, power: 0)
    code, out, _ = run(verify_command)
    assert code == 1
    assert "not as expected" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "checkpoint=???: must be given"),
        (["checkpoint=nowhere", "out=x", WIDEN], "checkpoint=nowhere"),
        (["checkpoint={small}", "out=x", "grow=[]"], "at least one operator"),
        (["checkpoint={small}", "out=x", "grow=[{wide: {}}]"], "did you mean widen"),
        (["checkpoint={small}", "out=x", "grow=[{widen: {scale: 2}}]"], "no such key"),
        (
            ["checkpoint={small}", "out=x", "grow=[{widen: {scale_factor: 1.3}}]"],
            "grow.0.widen.scale_factor=1.3",
        ),
        (["checkpoint={small}", "out=x", "grow=[{upcycle: {}}]"], "grow.0.upcycle.num_experts"),
        (["checkpoint={small}", "out=x", WIDEN, "optimizer_state=exact"], "must be one of carry"),
        (["checkpoint={small}", "out=x", WIDEN, "seed=-1"], "seed=-1"),
        (["checkpoint={small}", "out={small}", WIDEN], "already exists"),
        (["checkpoint={small}", "outt=x", WIDEN], "outt"),
        (["checkpoint={small}", "out=x", WIDEN, "+foo=1"], "foo=1: there is no such key"),
        (
            [
                "checkpoint={small}",
                "out=x",
                "grow=[{multiply_experts: {factor: 256}}, {multiply_experts: {factor: 9}}]",
            ],
            "grow.1.multiply_experts",
        ),
        (["--grow"], "must be key=value"),
    ],
)
def test_bad_input_to_grow(run, small, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(grow_command, *(a.replace("{small}", str(small)) for a in arguments))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["old={small}"], "give both old and new"),
        (["old=nowhere", "new={small}"], "old=nowhere"),
        (["old={small}", "new={other}"], "was not grown from old"),
        (["tolerance=0"], "tolerance=0"),
        (["tolerance=1e-3"], "the standalone suite has no settings"),
        (["old={small}", "new={damaged}"], "new={damaged}"),
        (["old={small}", "new={small}", "+foo=1"], "foo=1: there is no such key"),
    ],
)
def test_bad_input_to_verify(run, small, tmp_path, arguments, message):
    other = tmp_path / "other"
    save_model(build(tiny_config(d_ff=8)), other, {})
    damaged = tmp_path / "damaged"
    save_model(build(tiny_config()), damaged, {"grown_from": {"operators": ["widen"]}})
    (damaged / "model.safetensors").unlink()
    places = {"{small}": str(small), "{other}": str(other), "{damaged}": str(damaged)}
    for place, path in places.items():
        arguments = [argument.replace(place, path) for argument in arguments]
        message = message.replace(place, path)
    code, _, err = run(verify_command, *arguments)
    assert code == 2
    assert message in err


def test_help(run):
    for module in (grow_command, verify_command):
        code, out, _ = run(module, "--help")
        assert code == 0
        assert "python -m growlm." in out


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_half_way_it_leaves_nothing_that_loads(tmp_path, tmp_path_factory, sent):
    config = tiny_config(d_model=256, n_heads=16, n_kv_heads=16, head_dim=16, d_ff=2048, n_layers=6)
    save_model(build(config, dtype=torch.float32), tmp_path / "small", {})
    out = tmp_path / "large"
    arguments = [
        f"checkpoint={tmp_path / 'small'}",
        f"out={out}",
        "grow=[{widen: {scale_factor: 4}}]",
    ]
    streams = tmp_path_factory.mktemp("streams")
    process = CommandProcess("growlm.grow", arguments, tmp_path, streams)
    while "writing" not in process.printed:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(sent)
    done = process.wait(30)
    assert not out.exists()
    expected = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[sent]
    assert done.returncode == expected
    assert sent == signal.SIGKILL or {p.name for p in tmp_path.iterdir()} == {"small"}
    for left in set(tmp_path.iterdir()) - {tmp_path / "small"}:
        with pytest.raises(UserError, match=r"no readable config\.json|there is no such folder"):
            load_model(left)
