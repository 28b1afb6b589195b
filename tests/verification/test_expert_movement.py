"""How the tokens of the probe moved between experts, counted from the traces of the checks."""

import pytest
import torch

from growlm.growth import Deepen, MultiplyExperts, Upcycle, Widen, grow
from growlm.growth.grow_model import build_growth_map
from growlm.model import ModelConfig, TransformerLM
from growlm.verification import expert_movement
from growlm.verification.comparison import ModelComparison
from growlm.verification.growth_check import detailed_growth_check

CONFIG = ModelConfig.preset("llama", vocab_size=64, d_model=32, n_layers=2, n_heads=4, d_ff=64)
PROBE = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))


def mixture():
    return grow(TransformerLM(CONFIG), [Upcycle(num_experts=4, top_k=2)])


def movement(old, operators):
    report = detailed_growth_check(
        old_model=old,
        new_model=grow(old, operators),
        probe=PROBE,
        device="cpu",
        growth_map=build_growth_map(old.config, operators),
    )
    return report.expert_movement


def test_a_dense_layer_is_one_old_expert():
    found = movement(TransformerLM(CONFIG), [Upcycle(num_experts=4, top_k=2)])
    assert found["experts"] == [1, 4]
    assert [(one["layer"], one["old_layer"]) for one in found["layers"]] == [(0, 0), (1, 1)]
    for layer in found["layers"]:
        assert layer["stayed"] is None
        assert {old for old, _, _ in layer["moves"]} == {0}
        assert sum(count for *_, count in layer["moves"]) == layer["choices"] == 2 * 16 * 2


@pytest.mark.parametrize("name", ["deepen", "widen"])
def test_tokens_stay_where_experts_stay(name):
    operators = {"widen": [Widen(scale_factor=1.5)], "deepen": [Deepen(extra_layers=1)]}[name]
    found = movement(mixture(), operators)
    kept = [layer for layer in found["layers"] if layer["old_layer"] is not None]
    assert [layer["old_layer"] for layer in kept] == [0, 1]
    for layer in kept:
        assert layer["stayed"] == layer["choices"]
        assert all(old == new for old, new, _ in layer["moves"])
    inserted = [layer for layer in found["layers"] if layer["old_layer"] is None]
    assert len(inserted) == (name == "deepen")
    assert all(layer["stayed"] is None for layer in inserted)


def test_choices_go_to_the_copies_of_their_expert():
    found = movement(mixture(), [MultiplyExperts(2)])
    assert found["experts"] == [4, 8]
    for layer in found["layers"]:
        assert layer["stayed"] == layer["choices"] == 2 * 16 * 4
        assert all(new % 4 == old for old, new, _ in layer["moves"])


def test_a_growth_without_experts_has_none():
    assert movement(TransformerLM(CONFIG), [Widen(scale_factor=1.5)]) == {}


def test_a_router_that_changed_shows_where_its_tokens_went():
    old = mixture()
    new = grow(old, [Deepen(extra_layers=1)])
    with torch.no_grad():
        for name, weight in new.named_parameters():
            if "router" in name:
                weight.copy_(weight.roll(1, dims=0))
    comparison = ModelComparison(
        old, new, PROBE, growth_map=build_growth_map(old.config, [Deepen(extra_layers=1)])
    )
    old_choices = comparison.old_trace.routings[0].selected_experts
    new_choices = comparison.new_trace.routings[0].selected_experts
    layer = expert_movement.count_expert_movement(comparison)["layers"][0]
    expected = {}
    for before, after in zip(old_choices.tolist(), new_choices.tolist(), strict=True):
        left = [expert for expert in before if expert not in after]
        for expert in after:
            origin = expert if expert in before else left.pop(0)
            expected[origin, expert] = expected.get((origin, expert), 0) + 1
    assert {(one, two): count for one, two, count in layer["moves"]} == expected
    assert layer["stayed"] == sum(n for (one, two), n in expected.items() if one == two)
    assert 0 < layer["stayed"] < layer["choices"]


def test_only_the_most_frequent_moves_are_kept(monkeypatch):
    everything = movement(mixture(), [MultiplyExperts(2)])
    monkeypatch.setattr(expert_movement, "MAX_MOVES", 4)
    for layer, whole in zip(
        movement(mixture(), [MultiplyExperts(2)])["layers"], everything["layers"], strict=True
    ):
        assert len(layer["moves"]) == 2
        counts = [count for *_, count in layer["moves"]]
        assert sorted(counts) == sorted(count for *_, count in whole["moves"])[-2:]
        assert layer["choices"] == whole["choices"]
