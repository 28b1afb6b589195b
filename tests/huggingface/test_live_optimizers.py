"""An optimizer of a transformers model grows as that of growlm's own model with the same weights does."""

import pytest
import torch
from torch.optim import SGD, Adafactor, AdamW

from growlm.growth import Deepen, MultiplyExperts, Upcycle, Widen, grow
from growlm.huggingface.live.live_model import read_live_model
from growlm.model import TransformerLM
from growlm.optim.adamw_8bit import AdamW8bit
from growlm.runtime.errors import UserError
from tests.huggingface.hf_models import make, tokens_for

UPCYCLE = Upcycle(num_experts=4)
WIDEN = Widen(scale_factor=2, noise_std=1e-3)
DEEPEN = Deepen(extra_layers=1)


def train(model, optimizer, steps=2, start=0):
    """The losses before each step."""
    losses = []
    for step in range(start, start + steps):
        tokens = tokens_for(model.config, seed=step % 2)
        loss = model(tokens, labels=tokens).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def own_model(model):
    """growlm's model with the same weights, and the names of the tensors that each of its own comes from."""
    tensors = read_live_model(model).tensors
    ours = TransformerLM(read_live_model(model).config)
    ours.load_state_dict({name: tensors.read(name) for name in tensors.names})
    return ours, tensors


def states_by_name(model, optimizer):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: state for parameter, state in optimizer.state.items()}


def translated(model, optimizer):
    """The states under the names and in the shapes of growlm's own model."""
    tensors, states = read_live_model(model).tensors, states_by_name(model, optimizer)
    found = {}
    for name in tensors.names:
        sources = tensors.sources(name)
        if sources and all(source in states for source in sources):
            found[name] = {
                entry: value.clone()
                if entry == "step"
                else tensors.make(name, lambda source, entry=entry: states[source][entry])
                for entry, value in states[sources[0]].items()
            }
    return found


@pytest.mark.parametrize(
    ("family", "operators", "make_optimizer"),
    [
        ("llama", [UPCYCLE, WIDEN, DEEPEN], lambda p: AdamW(p, lr=1e-2, amsgrad=True)),
        ("gpt2", [WIDEN], lambda p: SGD(p, lr=1e-2, momentum=0.9)),
        ("mixtral", [MultiplyExperts(noise_std=1e-3)], lambda p: AdamW(p, lr=1e-2)),
    ],
    ids=["llama", "gpt2", "mixtral"],
)
def test_its_moments_grow_as_the_weights(family, operators, make_optimizer):
    model = make(family)
    optimizer = make_optimizer(model.parameters())
    train(model, optimizer)
    ours, _ = own_model(model)
    our_optimizer = make_optimizer(ours.parameters())
    states = translated(model, optimizer)
    for name, parameter in ours.named_parameters():
        our_optimizer.state[parameter] = states[name]
    before = {name: dict(state) for name, state in states_by_name(model, optimizer).items()}

    grown, new = grow(model, operators, optimizer=optimizer)
    expected, expected_optimizer = grow(ours, operators, optimizer=our_optimizer)

    found = translated(grown, new)
    wanted = states_by_name(expected, expected_optimizer)
    assert found.keys() == wanted.keys()
    for name, state in wanted.items():
        assert found[name].keys() == state.keys()
        for entry, value in state.items():
            assert torch.equal(found[name][entry], value), (name, entry)
    moments = [v for state in new.state.values() for v in state.values() if v.ndim]
    shared = {v.data_ptr() for state in optimizer.state.values() for v in state.values()}
    assert all(v.is_contiguous() and v.data_ptr() not in shared for v in moments)
    assert states_by_name(model, optimizer).keys() == before.keys()
    losses = train(grown, new, 4)
    assert losses[2] < losses[0]


def test_its_groups_are_those_of_the_sources():
    model = make("llama")
    norms = [parameter for name, parameter in model.named_parameters() if "norm" in name]
    others = [parameter for name, parameter in model.named_parameters() if "norm" not in name]
    groups = [{"params": others, "weight_decay": 0.1}, {"params": norms, "lr": 1e-4}]
    first = AdamW(groups, lr=1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(first, lambda step: 0.5)
    assert schedule.get_last_lr() == [5e-3, 5e-5]
    grown, (new,) = grow(model, [UPCYCLE], optimizer=[first], optimizer_state="reset")
    names = {parameter: name for name, parameter in grown.named_parameters()}
    decayed, plain = (
        {names[parameter] for parameter in group["params"]} for group in new.param_groups
    )
    assert plain == {name for name in names.values() if "norm" in name}
    assert decayed == set(names.values()) - plain
    assert "model.layers.0.mlp.gate.weight" in decayed
    assert [(group["lr"], group["weight_decay"]) for group in new.param_groups] == [
        (1e-2, 0.1),
        (1e-4, 0.0),
    ]
    assert not new.state
    train(grown, new)


def test_zeros_that_a_class_needs_stay_zeros():
    model = make("qwen2")
    optimizer = AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer)
    grown, new = grow(model, [UPCYCLE], optimizer=optimizer)
    train(grown, new)
    shared = [value for name, value in grown.state_dict().items() if "shared_expert" in name]
    assert shared
    assert not any(value.any() for value in shared)
    again, newer = grow(grown, [WIDEN], optimizer=new)
    train(again, newer)


@pytest.mark.parametrize(
    ("make_optimizer", "mode", "message"),
    [
        (AdamW, "exact", "optimizer_state=exact: is not for transformers models; use carry or res"),
        (AdamW, "asymmetric", "optimizer_state=asymmetric: must be one of carry, reset, exact"),
        (Adafactor, "carry", "optimizer=Adafactor: its state 'row_var' of .*optimizer_state=reset"),
        pytest.param(
            lambda p, lr: AdamW8bit([{"params": list(p)}], lr=lr, betas=(0.9, 0.95), eps=1e-8),
            "carry",
            "optimizer=AdamW8bit: its state .* set optimizer_state=reset",
            marks=pytest.mark.slow,  # it loads torchao
        ),
    ],
)
def test_what_cannot_be_carried_is_refused(make_optimizer, mode, message):
    model = make("llama", vocab_size=64, hidden_size=64)
    optimizer = make_optimizer(model.parameters(), lr=1e-3)
    train(model, optimizer, 1)
    with pytest.raises(UserError, match=message):
        grow(model, [UPCYCLE], optimizer=optimizer, optimizer_state=mode)
    grown, new = grow(model, [UPCYCLE], optimizer=optimizer, optimizer_state="reset")
    train(grown, new, 1)


def test_an_optimizer_of_another_model_is_refused():
    optimizer = AdamW(make("llama").parameters())
    with pytest.raises(UserError, match="steps a tensor that is not a parameter of the model"):
        grow(make("llama"), [UPCYCLE], optimizer=optimizer)
