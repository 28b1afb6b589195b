"""The optimizer's state through a growth."""

import pytest
import torch
import torch.nn.functional as F

from growlm.growth import Deepen, Upcycle, Widen, build_growth_map, grow_optimizer_state
from tests.model.tiny_models import build, random_tokens, tiny_config


def trained_states(config):
    """AdamW's state by parameter name, after three real steps."""
    model = build(config)
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = random_tokens(config)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()
    return {name: dict(optimizer.state[p]) for name, p in model.named_parameters()}


def state_copies(states):
    return {name: {k: v.clone() for k, v in state.items()} for name, state in states.items()}


def test_state_has_the_shape_of_its_parameter_and_keeps_its_step():
    config = tiny_config()
    growth_map = build_growth_map(config, [Widen(scale_factor=1.5, new_channels="copies")])

    grown = grow_optimizer_state(growth_map, trained_states(config), "carry")

    assert grown.keys() == growth_map.tensors.keys()
    for name, state in grown.items():
        assert state["step"] == 3
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == growth_map.tensors[name].shape
        assert (state["exp_avg_sq"] >= 0).all()


@pytest.mark.parametrize(
    "operators",
    [
        [Widen(scale_factor=2, new_channels="copies")],
        [Upcycle()],
        [Deepen(init="copy")],
        [Upcycle(), Widen(d_ff=48, new_channels="copies")],
    ],
    ids=["widen", "upcycle", "deepen", "upcycle, widen"],
)
def test_every_source_is_dropped_on_the_way(operators):
    config = tiny_config()
    states = trained_states(config)

    grown = grow_optimizer_state(build_growth_map(config, operators), states, "carry")

    assert grown
    assert states == {}


def test_a_source_is_gone_before_the_next_tensor_is_made():
    """So old and new moments never exist all at once."""
    config = tiny_config()
    growth_map = build_growth_map(config, [Widen(scale_factor=2, new_channels="copies")])

    states_left = []

    class Watched(dict):
        def __getitem__(self, name):
            states_left.append(len(self))
            return super().__getitem__(name)

    grow_optimizer_state(growth_map, Watched(trained_states(config)), "carry")

    assert states_left == list(range(len(growth_map.tensors), 0, -1))


def test_moments_are_mapped_with_their_own_power():
    config = tiny_config()
    growth_map = build_growth_map(config, [Widen(scale_factor=2, new_channels="copies")])
    states = trained_states(config)
    old = state_copies(states)

    grown = grow_optimizer_state(growth_map, states, "carry")

    name = "blocks.0.feed_forward.up.bias"
    assert torch.equal(grown[name]["exp_avg"], old[name]["exp_avg"].repeat(2) / 2)
    assert torch.equal(grown[name]["exp_avg_sq"], old[name]["exp_avg_sq"].repeat(2) / 4)
    head = "embedding.weight"
    assert torch.equal(grown[head]["exp_avg"], old[head]["exp_avg"].repeat(1, 2) / 2)


def test_fillers_have_no_momentum_and_an_ordinary_second_moment():
    config = tiny_config()
    growth_map = build_growth_map(config, [Widen(d_model=24, new_channels="copies")])
    states = trained_states(config)
    old = state_copies(states)["blocks.1.attention.query.weight"]

    grown = grow_optimizer_state(growth_map, states, "carry")["blocks.1.attention.query.weight"]

    assert not grown["exp_avg"][:, 16:].any()
    mean = old["exp_avg_sq"].mean(dim=1, keepdim=True).expand(16, 8)
    assert torch.allclose(grown["exp_avg_sq"][:, 16:], mean, rtol=1e-12, atol=0)


def test_router_starts_afresh_and_experts_get_their_share():
    config = tiny_config()
    growth_map = build_growth_map(config, [Upcycle(num_experts=4)])
    states = trained_states(config)
    old = state_copies(states)

    grown = grow_optimizer_state(growth_map, states, "carry")

    absent = {name for name in growth_map.tensors if name not in grown}
    assert absent == {f"blocks.{block}.feed_forward.router.weight" for block in (0, 1)}
    for name, dense in (("down", "down.weight"), ("up_bias", "up.bias")):
        state = grown[f"blocks.1.feed_forward.experts.{name}"]
        source = old[f"blocks.1.feed_forward.{dense}"]
        assert all(torch.equal(part, source["exp_avg"] / 4) for part in state["exp_avg"])
        assert all(torch.equal(part, source["exp_avg_sq"] / 16) for part in state["exp_avg_sq"])
        assert state["step"] == 3


@pytest.mark.parametrize("placement", ["append", "interleave", "stack"])
def test_new_identity_blocks_start_afresh(placement):
    config = tiny_config()
    growth_map = build_growth_map(
        config, [Deepen(extra_layers=2, placement=placement, init="identity")]
    )
    new_blocks = [i for i, origin in enumerate(growth_map.blocks) if origin.kind != "kept"]

    grown = grow_optimizer_state(growth_map, trained_states(config), "carry")

    new_names = {
        name
        for name in growth_map.tensors
        if any(name.startswith(f"blocks.{block}.") for block in new_blocks)
    }
    assert len(new_names) == 2 * 16
    assert growth_map.tensors.keys() - grown.keys() == new_names


def test_kept_blocks_move_with_their_state():
    config = tiny_config()
    growth_map = build_growth_map(
        config, [Deepen(extra_layers=2, placement="interleave", init="identity")]
    )
    states = trained_states(config)
    old = state_copies(states)

    grown = grow_optimizer_state(growth_map, states, "carry")

    name = "attention.key.weight"
    assert torch.equal(grown[f"blocks.2.{name}"]["exp_avg"], old[f"blocks.1.{name}"]["exp_avg"])


def test_copied_blocks_take_the_state_of_their_source():
    config = tiny_config()
    states = trained_states(config)
    old = state_copies(states)

    grown = grow_optimizer_state(build_growth_map(config, [Deepen(init="copy")]), states, "carry")

    for name in ("attention.output.weight", "feed_forward.up.bias"):
        copied, source = grown[f"blocks.2.{name}"], old[f"blocks.1.{name}"]
        assert all(torch.equal(copied[entry], source[entry]) for entry in source)
        assert copied["exp_avg"].data_ptr() != grown[f"blocks.1.{name}"]["exp_avg"].data_ptr()


def test_source_moments_are_left_as_they_are():
    growth_map = build_growth_map(
        tiny_config(), [Widen(scale_factor=1.5, new_channels="copies"), Deepen(init="copy")]
    )
    states = trained_states(tiny_config())

    for tensor_map in growth_map.tensors.values():
        source = states[tensor_map.source]["exp_avg_sq"]
        before = source.clone()
        tensor_map.grow_moment(source, 2).fill_(7.0)
        assert torch.equal(source, before)


def test_a_parameter_without_state_gets_none():
    config = tiny_config()
    states = trained_states(config)
    del states["final_norm.weight"]

    grown = grow_optimizer_state(
        build_growth_map(config, [Widen(scale_factor=2, new_channels="copies")]), states, "carry"
    )

    assert "final_norm.weight" not in grown
    assert "final_norm.bias" in grown


def test_reset_forgets_everything():
    config = tiny_config()
    states = trained_states(config)

    assert (
        grow_optimizer_state(
            build_growth_map(config, [Widen(scale_factor=2, new_channels="copies")]),
            states,
            "reset",
        )
        == {}
    )
    assert states == {}


def test_unknown_entry_is_refused():
    config = tiny_config()
    states = trained_states(config)
    states["embedding.weight"]["own_mean"] = torch.zeros(29, 16)

    with pytest.raises(ValueError, match=r"own_mean.*embedding\.weight"):
        grow_optimizer_state(
            build_growth_map(config, [Widen(scale_factor=2, new_channels="copies")]),
            states,
            "carry",
        )


def test_unknown_mode_is_refused():
    config = tiny_config()

    with pytest.raises(ValueError, match="keep"):
        grow_optimizer_state(
            build_growth_map(config, [Deepen(init="identity")]), trained_states(config), "keep"
        )
