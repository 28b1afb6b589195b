"""What a growth gives does not depend on how many threads make it, nor on which tensors they share."""

import sys
from itertools import product

import pytest
import torch

from growlm.growth import Deepen, Upcycle, Widen, grow
from growlm.growth.growth_rng import GrowthRng
from growlm.growth.transforms.matrix_std import compute_matrix_std
from tests.model.tiny_models import build, tiny_config

GROWTHS = {
    "copies": [Widen(scale_factor=1.5, new_channels="copies")],
    "fresh": [Widen(scale_factor=2, new_channels="fresh"), Deepen(init="fresh")],
    "redrawn": [Upcycle(4, drop_fraction=0.5)],
}


# Sums of so many entries torch shares among its threads; and those of so many rows.
SIZES = {"d_ff": 4096, "vocab_size": 40_000, "tie_embeddings": False, "n_layers": 1}


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("operators", GROWTHS.values(), ids=GROWTHS)
def test_the_same_bits_with_any_threads_at_once_and_one_after_another(
    operators, threads, monkeypatch
):
    model = build(tiny_config("default", **SIZES), std=0.2)
    threads(1)
    expected = grow(model, operators).state_dict()
    module = sys.modules[
        "growlm.growth.grow_model"
    ]  # by its name in the package it is the function
    for large, number in product((1, module.LARGE_TENSOR_ENTRIES), (2, 5)):
        monkeypatch.setattr(module, "LARGE_TENSOR_ENTRIES", large)
        threads(number)
        found = grow(model, operators).state_dict()
        assert torch.get_num_threads() == number
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_what_fails_in_a_thread_fails(threads):
    threads(2)

    def fail(item: int) -> int:
        if item == 1:
            raise ArithmeticError("no")
        return item

    with GrowthRng(0) as draws, pytest.raises(ArithmeticError, match="no"):
        draws.threads.map(fail, range(4))


@pytest.mark.parametrize("number", [1, 2])
def test_the_deviation_of_a_large_matrix_is_not_lost_in_rounding(number, threads):
    """Summed in one go, it is too small: by 3e-4 here, by five percent in a matrix ten times as large."""
    threads(number)
    wide = torch.randn(2048, 4096, generator=torch.Generator().manual_seed(0)) * 0.02
    half = wide.narrow(1, 0, 2048)
    for matrix in (wide, half):
        expected = matrix.double().std(correction=0)
        assert float(compute_matrix_std(matrix)) == pytest.approx(float(expected), rel=1e-5)
        assert compute_matrix_std(matrix.unsqueeze(0)).shape == (1, 1, 1)
