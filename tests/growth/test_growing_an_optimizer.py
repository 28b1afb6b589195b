"""`grow(model, operators, optimizer=...)`: a plain PyTorch loop goes on with the grown optimizer."""

import copy
import pickle
import weakref

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from growlm.growth import Deepen, Upcycle, Widen, grow, register_moment
from growlm.optim.adamw_8bit import AdamW8bit
from growlm.optim.optimizer_states import check_optimizer
from growlm.runtime.errors import UserError
from tests.model.tiny_models import build, max_difference, random_tokens, tiny_config
from tests.training.grown_training import OPTIMIZERS, Training

GROWTHS = {
    "upcycle": [Upcycle(num_experts=4)],
    "widen": [Widen(scale_factor=1.5, new_channels="copies")],
    "deepen": [Deepen(extra_layers=1, init="identity")],
    "all": [
        Upcycle(num_experts=4),
        Widen(scale_factor=2, new_channels="copies"),
        Deepen(extra_layers=1, init="identity"),
    ],
}
EXACT = [Widen(scale_factor=2, noise_std=0.0)]
MADE = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "nesterov": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
}


def train(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        batch = random_tokens(model.config, batch=4, time=9, seed=100 + step)
        model.loss(batch, []).backward()
        optimizer.step()
        optimizer.zero_grad()


def states_of(optimizer):
    return copy.deepcopy([optimizer.state[p] for g in optimizer.param_groups for p in g["params"]])


def model_and_optimizer(make=MADE["adamw"], steps=3):
    model = build(tiny_config(), std=0.2)
    optimizer = make(model.parameters())
    train(model, optimizer, steps)
    return model, optimizer


CASES = [(name, growth) for name in OPTIMIZERS for growth in GROWTHS]
CASES.remove(("muon", "upcycle"))  # a plan gives a router to AdamW, here it joins its neighbors
CASES.remove(("muon", "all"))


@pytest.mark.parametrize(("name", "growth"), CASES)
def test_it_goes_on_as_a_plan_does(name, growth):
    plan = Training(build(tiny_config(), std=0.2), OPTIMIZERS[name], clip=float("inf")).steps(3)
    loop = Training(build(tiny_config(), std=0.2), OPTIMIZERS[name], clip=float("inf")).steps(3)
    plan.grow(GROWTHS[growth], "carry")
    loop.model, loop.optimizer = grow(loop.model, GROWTHS[growth], optimizer=loop.optimizer)
    check_optimizer(loop.model, loop.optimizer)
    plan.steps(3), loop.steps(3)
    ours = loop.model.state_dict()
    for key, value in plan.model.state_dict().items():
        assert torch.equal(value, ours[key]), key


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_any_optimizer_of_torch(make):
    model, optimizer = model_and_optimizer(make)
    before, weights = states_of(optimizer), copy.deepcopy(model.state_dict())
    grown, new = grow(model, GROWTHS["all"], optimizer=optimizer)
    assert type(new) is type(optimizer)
    check_optimizer(grown, new)
    train(grown, new, steps=2)
    # The old pair is left as it is, and may go on.
    torch.testing.assert_close(states_of(optimizer), before, rtol=0, atol=0)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    train(model, optimizer, steps=1)


def test_several_optimizers():
    """Muon for the matrices of the blocks, AdamW for the rest, and each new parameter in one of them."""
    model = build(tiny_config(), std=0.2)
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    pair = [torch.optim.Muon(matrices, lr=1e-2), torch.optim.AdamW(rest, lr=1e-2)]
    model.loss(random_tokens(model.config, batch=4, time=9)).backward()
    for each in pair:
        each.step()
    grown, new = grow(
        model,
        [Widen(scale_factor=2, new_channels="copies"), Deepen(init="identity")],
        optimizer=pair,
    )
    assert [type(each) for each in new] == [torch.optim.Muon, torch.optim.AdamW]
    stepped = [id(p) for each in new for group in each.param_groups for p in group["params"]]
    assert sorted(stepped) == sorted(id(p) for p in grown.parameters())
    grown.loss(random_tokens(model.config, batch=4, time=9)).backward()
    for each in new:
        each.step()
    with pytest.raises(UserError, match=r"optimizer=Muon: steps matrices only, and blocks\.0\."):
        grow(model, [Upcycle(num_experts=4)], optimizer=pair)


@pytest.mark.slow
def test_8_bit_moments_stay_so():
    pytest.importorskip("torchao")
    config = tiny_config(d_model=64, n_heads=8, head_dim=8, n_kv_heads=8, d_ff=128)
    model = build(config, std=0.2, dtype=torch.float32)
    groups = [{"params": list(model.parameters()), "weight_decay": 0.1}]
    optimizer = AdamW8bit(groups, 1e-2, (0.9, 0.95), 1e-8)
    train(model, optimizer, 2)
    grown, new = grow(model, [Widen(scale_factor=2, new_channels="copies")], optimizer=optimizer)
    check_optimizer(grown, new)
    assert "exp_avg_scale" in new.state[grown.blocks[0].feed_forward.up.weight]
    train(grown, new, 2)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_exact_trains_as_the_old_model_would_have(name):
    ungrown = Training(build(tiny_config(), std=0.2), OPTIMIZERS[name], clip=float("inf"))
    grown = Training(build(tiny_config(), std=0.2), OPTIMIZERS[name], clip=float("inf"))
    ungrown.steps(20)
    grown.steps(4)
    model, optimizer = grown.model, grown.optimizer
    for steps in (8, 8):
        model, optimizer = grow(model, EXACT, optimizer=optimizer, optimizer_state="exact")
        train(model, optimizer, steps, start=grown.done)
        grown.done += steps
    tokens = random_tokens(model.config)
    with torch.no_grad():
        assert max_difference(model(tokens), ungrown.model(tokens)) <= 1e-8


def test_exact_with_several_optimizers_scales_each_gradient_once():
    def two(model):
        blocks = list(model.blocks.parameters())
        chosen = {id(p) for p in blocks}
        rest = [p for p in model.parameters() if id(p) not in chosen]
        return [torch.optim.SGD(each, lr=1e-2, momentum=0.9) for each in (blocks, rest)]

    def steps(model, pair, start, count):
        for step in range(start, start + count):
            batch = random_tokens(model.config, batch=4, time=9, seed=100 + step)
            model.loss(batch, []).backward()
            for each in pair:
                each.step()
            model.zero_grad()

    ungrown, model = (build(tiny_config(), std=0.2) for _ in range(2))
    steps(ungrown, two(ungrown), 0, 12)
    pair = two(model)
    steps(model, pair, 0, 4)
    model, pair = grow(model, EXACT, optimizer=pair, optimizer_state="exact")
    steps(model, pair, 4, 8)
    tokens = random_tokens(model.config)
    with torch.no_grad():
        assert max_difference(model(tokens), ungrown(tokens)) <= 1e-8


def test_reset_starts_anew():
    model, optimizer = model_and_optimizer()
    _, new = grow(model, GROWTHS["widen"], optimizer=optimizer, optimizer_state="reset")
    assert not new.state


def test_groups_and_what_is_frozen_stay():
    model = build(tiny_config(), std=0.2)
    model.embedding.requires_grad_(False)
    first = list(model.blocks[0].parameters())
    rest = [*model.blocks[1:].parameters(), *model.final_norm.parameters()]
    groups = [{"params": first, "lr": 1e-3}, {"params": rest, "weight_decay": 0.3}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    train(model, optimizer, 2)
    grown, new = grow(model, GROWTHS["all"], optimizer=optimizer)
    assert [(g["lr"], g["weight_decay"]) for g in new.param_groups] == [(1e-3, 1e-2), (1e-2, 0.3)]
    assert {id(p) for p in new.param_groups[0]["params"]} == {
        id(p) for p in grown.blocks[0].parameters()
    }
    assert not grown.embedding.weight.requires_grad
    frozen = grown.embedding.weight.clone()
    train(grown, new, 2)
    assert torch.equal(frozen, grown.embedding.weight)


def test_a_schedule_is_built_anew():
    """A chainable schedule starts from `lr`, which the old schedule has brought to zero."""
    model, optimizer = model_and_optimizer()
    old = CosineAnnealingLR(optimizer, 2)
    for _ in range(2):
        train(model, optimizer, 1)
        old.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0)
    grown, new = grow(model, GROWTHS["widen"], optimizer=optimizer)
    schedule = CosineAnnealingLR(new, 2)
    rates = []
    for _ in range(2):
        rates.append(new.param_groups[0]["lr"])
        train(grown, new, 1)
        schedule.step()
    assert rates == pytest.approx([1e-2, 5e-3])
    assert old.get_last_lr() == pytest.approx([0.0])


def test_parameters_keep_their_order_and_names():
    model = build(tiny_config(), std=0.2)
    named = list(model.named_parameters())[::-1]
    optimizer = torch.optim.AdamW(named, lr=1e-2)
    grown, new = grow(model, GROWTHS["all"], optimizer=optimizer)
    (group,) = new.param_groups
    parameters = dict(grown.named_parameters())
    assert [id(parameters[name]) for name in group["param_names"]] == [
        id(p) for p in group["params"]
    ]
    kept = [name for name in group["param_names"] if name in dict(named)]
    assert kept == [name for name, _ in named if name in parameters]


class Signed(torch.optim.Optimizer):
    """An optimizer of one's own, whose state has a name that growlm does not know."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.scale = 0.5

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("own_mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 0.1)
                p -= group["lr"] * self.scale * mean.sign()


def test_an_optimizer_of_ones_own(monkeypatch):
    known = {}
    for module in ("optimizer_state", "optimizer_growth"):
        monkeypatch.setattr(f"growlm.growth.{module}.MOMENT_POWERS", known)
    model, optimizer = model_and_optimizer(lambda p: Signed(p, 1e-2))
    with pytest.raises(UserError, match=r"optimizer=Signed: no rule .*'own_mean'.*register_moment"):
        grow(model, GROWTHS["all"], optimizer=optimizer)
    register_moment("own_mean", 1)
    grown, new = grow(model, GROWTHS["all"], optimizer=optimizer)
    assert new.scale == 0.5
    assert new.state[grown.final_norm.weight]["own_mean"].shape == grown.final_norm.weight.shape
    train(grown, new, 2)
    with pytest.raises(ValueError, match="power=2: must be 1 for 'own_mean'"):
        register_moment("own_mean", 2)


class Holding(torch.optim.SGD):
    """One that keeps its parameters elsewhere, too."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.slow = {p: torch.zeros_like(p) for g in self.param_groups for p in g["params"]}


class Replaceable(Holding):
    def with_groups(self, groups):
        return Replaceable(groups, self.defaults["lr"])


def test_one_that_holds_parameters_outside_its_groups():
    model, optimizer = model_and_optimizer(lambda p: Holding(p, 0.1))
    with pytest.raises(UserError, match=r"optimizer=Holding: holds parameters in slow, .*with_gr"):
        grow(model, GROWTHS["widen"], optimizer=optimizer)
    optimizer = Replaceable(model.parameters(), 0.1)
    grown, new = grow(model, GROWTHS["widen"], optimizer=optimizer)
    assert set(new.slow) == set(grown.parameters())


class Never:
    def change(self, config):
        raise AssertionError


def test_with_exact_copies_are_refused_and_the_state_dict_is_plain():
    model, optimizer = model_and_optimizer(steps=4)
    grown, new = grow(model, EXACT, optimizer=optimizer, optimizer_state="exact")
    _, plain = grow(model, EXACT, optimizer=optimizer)
    found, expected = new.state_dict()["state"], plain.state_dict()["state"]
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(
            UserError, match="optimizer_state=exact: an optimizer of this mode cann"
        ):
            copied(new)
    new.step()  # without gradients
    parameter = weakref.ref(grown.embedding.weight)
    del grown, new
    assert parameter() is None


def test_what_is_refused():
    model, optimizer = model_and_optimizer()
    adafactor = MADE["adafactor"](model.parameters())
    rmsprop = torch.optim.RMSprop(model.parameters(), momentum=0.9)
    train(model, rmsprop, 1)
    ascending = torch.optim.SGD(model.parameters(), maximize=True)
    other = torch.optim.SGD(build(tiny_config()).parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(other, 1)
    for match, arguments in (
        (
            "optimizer=SGD: steps a tensor that is not a parameter of the model",
            {"optimizer": other},
        ),
        ("optimizer=StepLR: is no optimizer; give", {"optimizer": schedule}),
        ("optimizer=str: is no optimizer; give", {"optimizer": "adam"}),
        ("optimizer_state=carry: needs an optimizer", {"optimizer_state": "carry"}),
        (
            "optimizer_state=exact: is for torch's AdamW, SGD, .* not for Adafactor",
            {"optimizer": adafactor, "optimizer_state": "exact"},
        ),
        ("optimizer=RMSprop: its momentum is a mean of normalized", {"optimizer": rmsprop}),
        (
            "optimizer_state=exact: is for optimizers that minimize",
            {"optimizer": ascending, "optimizer_state": "exact"},
        ),
        (
            "optimizer_state=asymmetric: must be one of carry, reset, exact",
            {"optimizer": optimizer, "optimizer_state": "asymmetric"},
        ),
    ):
        with pytest.raises(UserError, match=match):
            grow(model, [Never()], **arguments)  # before anything grows
    _, new = grow(model, EXACT, optimizer=optimizer, optimizer_state="exact")
    with pytest.raises(
        UserError, match=r"optimizer_state=exact: works with step\(\), not with a cl"
    ):
        new.step(lambda: None)
