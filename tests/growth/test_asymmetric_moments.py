"""`asymmetric`: the original block keeps its moments, the new one begins with none."""

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
from growlm.growth.model_protocol import axes_table_from_config
from growlm.growth.transforms.scale_factors import original_mask
from growlm.model import TransformerLM
from tests.model.tiny_models import EXPERTS, tiny_config


def ones_state(config):
    return {
        name: {
            "step": torch.tensor(7.0),
            "exp_avg": torch.ones(row.shape),
            "exp_avg_sq": torch.ones(row.shape),
        }
        for name, row in axes_table_from_config(config, TransformerLM).items()
    }


@pytest.mark.parametrize(
    "operators",
    [
        [Widen(scale_factor=2)],
        [Widen(scale_factor=1.5)],
        [Widen(d_ff=40)],
        [Widen(scale_factor=2), Widen(scale_factor=1.5)],
        [MultiplyExperts(2)],
    ],
)
def test_the_original_block_is_the_first_copys_rows_and_columns(operators):
    config = tiny_config(**EXPERTS)
    growth_map = build_growth_map(config, operators)
    old_shapes = growth_map.old_shapes
    carried = grow_optimizer_state(growth_map, ones_state(config), "carry")

    grown = grow_optimizer_state(growth_map, ones_state(config), "asymmetric")

    for name, state in grown.items():
        tensor_map = growth_map.tensors[name]
        corner = tuple(slice(0, size) for size in old_shapes[tensor_map.source])
        for entry in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state[entry][corner], carried[name][entry][corner])
            assert state[entry][corner].min() > 0
            assert state[entry].sum() == state[entry][corner].sum(), "zero outside the block"
        mask = original_mask(growth_map.scale_factors()[name], state["exp_avg"])
        assert torch.equal(mask > 0, state["exp_avg"] > 0)
        assert state["step"] == 7


def test_grouped_query_heads_keep_the_first_copy_of_each():
    config = tiny_config(n_heads=8, n_kv_heads=2)
    growth_map = build_growth_map(config, [Widen(n_heads=10)])
    grown = grow_optimizer_state(growth_map, ones_state(config), "asymmetric")
    rows = grown["blocks.0.attention.query.weight"]["exp_avg"].sum(dim=1) > 0
    # Five heads a group: four originals, then a copy of the first.
    assert rows.unflatten(0, (2, 5, 4)).all(dim=2).tolist() == [[True] * 4 + [False]] * 2


@pytest.mark.parametrize("operators", [[Upcycle(4)], [Deepen()], [Deepen(init="copy")]])
def test_other_growths_are_carried(operators):
    config = tiny_config()
    growth_map = build_growth_map(config, operators)
    carried = grow_optimizer_state(growth_map, ones_state(config), "carry")
    grown = grow_optimizer_state(growth_map, ones_state(config), "asymmetric")
    assert carried.keys() == grown.keys()
    assert all(torch.equal(carried[n]["exp_avg"], grown[n]["exp_avg"]) for n in grown)
