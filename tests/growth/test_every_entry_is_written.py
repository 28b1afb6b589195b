"""Growth takes memory as the system gives it, and leaves nothing in a tensor that it has not written itself."""

from contextlib import contextmanager

import pytest
import torch

from growlm.growth import (
    Deepen,
    MultiplyExperts,
    Upcycle,
    Widen,
    build_growth_map,
    grow,
    grow_optimizer_state,
)
from tests.machines.imitation import fill_new_memory
from tests.model.tiny_models import build, tiny_config

GROWTHS = {
    "copies": [Widen(scale_factor=2, new_channels="copies")],
    "copies and fillers": [Widen(scale_factor=1.5, new_channels="copies")],
    "three copies and fillers": [Widen(scale_factor=3.5, new_channels="copies")],
    "one axis": [Widen(d_ff=40, new_channels="copies")],
    "zeros": [Widen(scale_factor=1.5, filler="zeros", new_channels="copies")],
    "fresh": [Widen(scale_factor=2, new_channels="fresh"), Deepen(init="fresh")],
    "twice": [
        Widen(scale_factor=1.5, new_channels="copies"),
        Widen(scale_factor=1.5, new_channels="fresh"),
    ],
    "experts": [Upcycle(4), Widen(scale_factor=1.5, new_channels="fresh"), MultiplyExperts(2)],
    "finer experts": [
        Upcycle(4, granularity=2, drop_fraction=0.5),
        Widen(scale_factor=1.5, new_channels="copies"),
    ],
}


@contextmanager
def nan_in_new_memory():
    before = fill_new_memory(True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        fill_new_memory(before)


@pytest.mark.parametrize("family", ["default", "llama"])
@pytest.mark.parametrize("operators", GROWTHS.values(), ids=GROWTHS)
def test_every_entry_of_a_weight_is_written(family, operators):
    model = build(tiny_config(family), std=0.2)
    with nan_in_new_memory():
        grown = grow(model, operators)
    assert all(parameter.isfinite().all() for parameter in grown.parameters())


@pytest.mark.parametrize("family", ["default", "llama"])
@pytest.mark.parametrize("operators", GROWTHS.values(), ids=GROWTHS)
def test_every_entry_of_a_moment_is_written(family, operators):
    model = build(tiny_config(family), std=0.2)
    states = {
        name: {"step": torch.tensor(3.0), "exp_avg": p.clone(), "exp_avg_sq": p.square()}
        for name, p in model.state_dict().items()
    }
    with nan_in_new_memory():
        grown = grow_optimizer_state(build_growth_map(model.config, operators), states, "carry")
    assert grown
    assert all(entry.isfinite().all() for state in grown.values() for entry in state.values())
