"""Every optimizer trains, grows with its state, and is audited."""

import pytest
import torch

from growlm.growth import (
    Deepen,
    MultiplyExperts,
    Upcycle,
    Widen,
    build_growth_map,
    grow_optimizer_state,
)
from growlm.model.axes import axes_table
from growlm.optim.optimizer_factory import build_optimizer, is_hidden_matrix
from growlm.optim.optimizer_states import check_optimizer, get_optimizer_states
from growlm.runtime.errors import UserError
from tests.model.tiny_models import EXPERTS, build, tiny_config
from tests.training.grown_training import OPTIMIZERS, Training
from tests.training.tiny_run import tiny_run

GROWTH = [
    Upcycle(4),
    Widen(scale_factor=1.5, new_channels="copies"),
    Deepen(init="identity"),
    MultiplyExperts(2),
]
MODES = {
    "adamw": ["carry", "reset", "exact", "asymmetric"],
    "sgd": ["carry", "reset", "exact", "asymmetric"],
    "adafactor": ["carry", "reset"],
    "muon": ["carry", "reset", "asymmetric"],
}
ALLOWED = [(name, mode) for name, modes in MODES.items() for mode in modes]
REFUSED = [("adafactor", "exact"), ("adafactor", "asymmetric"), ("muon", "exact")]


FAST = [("adamw", "exact"), ("muon", "carry")]


@pytest.mark.parametrize(
    ("name", "mode"),
    [pytest.param(*case, marks=[] if case in FAST else [pytest.mark.slow]) for case in ALLOWED],
)
def test_a_run_of_four_phases(tmp_path, name, mode):
    later = [f"phases.{phase}.optimizer_state={mode}" for phase in ("moe", "wide", "deep")]
    run = tiny_run(tmp_path / "run", f"optimizer={name}", *later)
    assert all(boundary.report for boundary in run.summary.boundaries)
    assert all(boundary.optimizer_state == mode for boundary in run.summary.boundaries)
    assert run.summary.phases[-1].val_loss < run.summary.phases[0].initial_val_loss


@pytest.mark.parametrize(("name", "mode"), REFUSED)
def test_a_mode_that_an_optimizer_cannot_have_is_refused(tmp_path, name, mode):
    with pytest.raises(
        UserError, match=f"optimizer_state={mode}.*optimizer={name} does not support this"
    ):
        tiny_run(tmp_path / "run", f"optimizer={name}", f"phases.wide.optimizer_state={mode}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_setting_of_another_optimizer_is_refused(tmp_path, name):
    setting = {"adamw": "momentum=0.9", "adafactor": "eps=1e-8"}.get(name, "beta2_decay=-0.8")
    with pytest.raises(UserError, match="has no such setting"):
        tiny_run(tmp_path / "run", f"optimizer={name}", f"optimizer.{setting}")


def test_a_setting_that_is_missing_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"optimizer\.momentum.*needs a value"):
        tiny_run(tmp_path / "run", "optimizer=sgd", "optimizer.momentum=null")


def test_the_first_phase_has_nothing_to_take_over(tmp_path):
    with pytest.raises(UserError, match=r"phases\.dense\.optimizer_state=reset"):
        tiny_run(tmp_path / "run", "phases.dense.optimizer_state=reset")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_grows_to_the_shapes_that_the_optimizer_would_make(name):
    old = Training(build(tiny_config()), OPTIMIZERS[name]).steps(2)
    states = get_optimizer_states(old.model, [old.optimizer])
    new = Training(build(tiny_config()), OPTIMIZERS[name]).steps(2)
    grown_map = build_growth_map(old.model.config, GROWTH)
    grown = grow_optimizer_state(grown_map, states, "carry")

    fresh = Training(new.grow(GROWTH, "reset").model, OPTIMIZERS[name]).steps(1)

    own = get_optimizer_states(fresh.model, [fresh.optimizer])
    assert grown
    for parameter, state in grown.items():
        shapes = {entry: value.shape for entry, value in state.items()}
        assert shapes == {entry: value.shape for entry, value in own[parameter].items()}


def test_adafactors_row_and_column_means_grow_as_the_whole_would():
    """On a second moment of rank one, which is all that the means can hold."""
    config = tiny_config()
    growth_map = build_growth_map(config, [Widen(scale_factor=2, noise_std=0.0)])
    name = "blocks.0.feed_forward.up.weight"
    rows, columns = torch.rand(24, 1) + 0.1, torch.rand(1, 16) + 0.1
    whole = rows @ columns
    state = {"row_var": whole.mean(1, keepdim=True), "col_var": whole.mean(0, keepdim=True)}

    grown = grow_optimizer_state(growth_map, {name: state}, "carry")[name]

    expected = growth_map.tensors[name].grow_moment(whole, 2)
    estimate = grown["row_var"] @ grown["col_var"] / grown["row_var"].mean()
    assert torch.allclose(estimate, expected, rtol=1e-5)


def test_muon_takes_the_matrices_inside_and_adamw_the_rest():
    model = build(tiny_config(**EXPERTS, tie_embeddings=False))
    optimizer = build_optimizer(model, OPTIMIZERS["muon"], 1e-3)
    orthogonal = {
        id(p) for group in optimizer.param_groups if group["orthogonal"] for p in group["params"]
    }
    by_muon = {name for name, p in model.named_parameters() if id(p) in orthogonal}
    table = axes_table(model)
    assert by_muon == {name for name in by_muon if is_hidden_matrix(table[name].label)}
    assert {name.rpartition("blocks.0.")[2] for name in by_muon if "blocks.0" in name} == {
        "attention.query.weight",
        "attention.key.weight",
        "attention.value.weight",
        "attention.output.weight",
        "feed_forward.experts.up",
        "feed_forward.experts.down",
    }


def test_each_expert_is_orthogonalised_by_itself():
    """The update of a stack is what torch's Muon makes of each expert alone."""
    model = build(tiny_config(**EXPERTS), dtype=torch.float32)
    stack = model.blocks[0].feed_forward.experts.up
    before = stack.detach().clone()
    optimizer = build_optimizer(model, OPTIMIZERS["muon"], 1e-2)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    alone = [torch.nn.Parameter(matrix.clone()) for matrix in before]
    settings = {"lr": 1e-2, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    torch_muon = torch.optim.Muon(alone, momentum=0.95, **settings)
    for parameter, gradient in zip(alone, stack.grad, strict=True):
        parameter.grad = gradient.clone()

    optimizer.step()
    torch_muon.step()

    assert torch.equal(stack.detach(), torch.stack([p.detach() for p in alone]))
    assert optimizer.state[stack]["momentum_buffer"].shape == stack.shape


def test_a_scheduler_reaches_muon_and_adamw():
    model = build(tiny_config())
    optimizer = build_optimizer(model, OPTIMIZERS["muon"], 1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    schedule.step()
    assert all(torch.equal(p.detach(), before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model, o: o.param_groups[0]["params"].pop(), "is in 0 groups"),
        (
            lambda model, o: o.param_groups[1]["params"].append(o.param_groups[0]["params"][0]),
            "is in 2 groups",
        ),
        (
            lambda model, o: o.param_groups[0]["params"].append(torch.nn.Parameter(torch.ones(1))),
            "not parameters of the model",
        ),
        (
            lambda model, o: o.state[model.embedding.weight].update(exp_avg=torch.ones(3)),
            "optimizer state of embedding",
        ),
    ],
)
def test_the_audit_finds_what_is_wrong(spoil, message):
    training = Training(build(tiny_config())).steps(1)
    check_optimizer(training.model, training.optimizer)
    spoil(training.model, training.optimizer)
    with pytest.raises(ValueError, match=message):
        check_optimizer(training.model, training.optimizer)
