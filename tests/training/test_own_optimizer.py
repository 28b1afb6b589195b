"""Optimizers of the user's own and of torch train, grow, stop and resume in a plan."""

import pytest
import torch

from growlm.config.schema import OptimizerConfig
from growlm.growth.optimizer_state import MOMENT_POWERS, register_moment
from growlm.optim.own_optimizer import decode_state, encode_state, probe_optimizer
from growlm.runtime.errors import UserError
from growlm.training import run_plan
from tests.training.stopping import assert_same_run, slow
from tests.training.test_resume import stopped_and_resumed
from tests.training.tiny_run import events, tiny_config

PACKAGE = """
import torch

class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, beta=0.9, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay, "steps": 0})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["steps"] += 1
            scale = 0.5 if group["steps"] > 2 else 1.0
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"], state["velocity"], state["ratio"] = 0, torch.zeros_like(p), 1.0
                state["step"] += 1
                state["ratio"] *= 0.9
                state["velocity"].lerp_(p.grad, 1 - group["beta"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(state["velocity"].sign(), alpha=group["lr"] * scale * (1 + state["ratio"]))
        return loss

class Momentum(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("average_of_mine", torch.zeros_like(p)).add_(p.grad)
                p.sub_(state["average_of_mine"], alpha=group["lr"])
        return loss

class KeepsAList(Momentum):
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["losses"] = [1.0]
        return loss

class NeedsItself(Momentum):
    def step(self):
        pass
"""
LION = ("optimizer._target_=package_of_optimizers.Lion", "optimizer.beta=0.8")


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    (tmp_path / "package_of_optimizers.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)


def settings(name, weight_decay=0.0, **arguments):
    target = name if "." in name else f"package_of_optimizers.{name}"
    return OptimizerConfig(
        name="own", _target_=target, weight_decay=weight_decay, arguments=arguments
    )


def test_a_shipped_optimizer_by_its_class_trains_to_the_same_bits(tmp_path):
    whole = run_plan(tiny_config(tmp_path / "one"))
    other = (
        "optimizer._target_=torch.optim.AdamW",
        "optimizer.betas=[0.9,0.95]",
        "optimizer.fused=true",
    )
    assert_same_run(whole.run_dir, run_plan(tiny_config(tmp_path / "other", *other)).run_dir)


@pytest.mark.parametrize("step", [7, *slow(3, 4, 5, 9, 13)])
def test_it_resumes_to_the_bit(step, tmp_path, capsys):
    """Numbers of Python, tensors of its own and what it keeps in its groups."""
    whole = run_plan(tiny_config(tmp_path / "whole", *LION))
    resumed = stopped_and_resumed(tmp_path / "run", LION, step)
    assert_same_run(whole.run_dir, resumed.run_dir)


@pytest.mark.parametrize(
    "name",
    [*slow("NAdam", "RAdam", "Adamax", "Adam", "Rprop", "ASGD", "RMSprop", "Adagrad", "Adadelta")],
)
def test_optimizers_of_torch(name, tmp_path):
    overrides = (f"optimizer._target_=torch.optim.{name}",)
    if name == "Rprop":
        overrides += ("optimizer.weight_decay=0",)
    whole = run_plan(tiny_config(tmp_path / "whole", *overrides))
    assert_same_run(whole.run_dir, stopped_and_resumed(tmp_path / "run", overrides, 7).run_dir)


def modes(run_dir):
    return [event["optimizer_state"] for event in events(run_dir, "boundary")]


def test_an_unknown_state_begins_anew_and_that_is_said_once(tmp_path, capsys):
    run = run_plan(tiny_config(tmp_path / "run", *LION))
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("begins anew in each phase that grows") == 1
    assert "'velocity', 'ratio'" in said
    assert modes(run.run_dir) == ["reset"] * 3


def test_a_registered_state_grows(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(MOMENT_POWERS, "average_of_mine", 1)
    register_moment("average_of_mine", 1)
    overrides = ("optimizer._target_=package_of_optimizers.Momentum", "optimizer.weight_decay=0")
    run = run_plan(tiny_config(tmp_path / "run", *overrides))
    assert "begins anew" not in " ".join(capsys.readouterr().out.split())
    assert modes(run.run_dir) == ["carry"] * 3


def test_what_it_keeps_is_measured():
    lion = probe_optimizer(settings("Lion"))
    assert lion.unknown_entries == ("velocity", "ratio")
    assert lion.bytes_per_weight_byte == 1.0
    assert probe_optimizer(settings("torch.optim.Adam")).bytes_per_weight_byte == 2.0
    assert probe_optimizer(settings("torch.optim.Adam", amsgrad=True)).bytes_per_weight_byte == 3.0
    assert probe_optimizer(settings("torch.optim.Adam")).unknown_entries == ()


def test_a_state_comes_back_as_it_was():
    parameter = torch.zeros(2, 3)
    state = {
        "step": 3,
        "exp_avg": torch.randn(2, 3),
        "exp_avg_sq": torch.randn(2, 1),
        "whole": torch.ones(2, dtype=torch.int64),
        "ratio": 0.1,
        "count": 7,
        "on": True,
        "nothing": None,
    }
    encoded = encode_state(parameter, state)
    assert all(isinstance(value, torch.Tensor) for value in encoded.values())
    assert encoded.keys() >= {"step", "exp_avg", "own:exp_avg_sq"}
    decoded = decode_state(encoded)
    del state["nothing"]
    assert decoded.keys() == state.keys()
    for entry, value in state.items():
        assert type(decoded[entry]) is type(value)
        assert decoded[entry] is value or decoded[entry] == value
    for step in (torch.tensor(3.0), torch.tensor(3)):
        assert decode_state(encode_state(parameter, {"step": step}))["step"] is step


@pytest.mark.parametrize(
    ("arguments", "key", "reason"),
    [
        ({"name": "KeepsAList"}, "optimizer._target_", "'losses' of type list"),
        ({"name": "NeedsItself"}, "optimizer._target_", "cannot step: .*takes 1 positional"),
        ({"name": "Momentum", "weight_decay": 0.1}, "optimizer.weight_decay", "set it to 0"),
        ({"name": "Lion", "lr": 0.1}, "optimizer.lr", r"phases\.NAME\.lr"),
        ({"name": "Lion", "beta3": 0.1}, "optimizer.beta3", "no such argument; did you mean beta"),
        ({"name": "Nothing"}, "optimizer._target_", "there is no such class"),
        ({"name": "torch.nn.Linear"}, "optimizer._target_", "is not a torch Optimizer"),
        ({"name": "os.getcwd", "weight_decay": 0.1}, "optimizer._target_", "is not a torch Optim"),
        ({"name": "torch.optim.LBFGS", "weight_decay": 0}, "optimizer", "per-parameter options"),
    ],
)
def test_what_cannot_be_used(arguments, key, reason):
    with pytest.raises(UserError, match=reason) as refused:
        probe_optimizer(settings(**arguments))
    assert refused.value.key == key


def test_the_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    probe_optimizer(settings("Lion", beta=0.123))
    assert torch.equal(before, torch.random.get_rng_state())
