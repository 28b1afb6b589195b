"""`scale_bilaterally` and `hyperclone_weight`, the growth of a whole model and of one matrix."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from growlm.growth import Deepen, Widen, grow, hyperclone_weight, scale_bilaterally
from growlm.model.keyed_rng import keyed_normal
from tests.growth.losslessness import assert_lossless
from tests.model.tiny_models import assert_same_state, build, max_difference, tiny_config


@pytest.mark.parametrize("scale_factor", [1.5, 2])
@pytest.mark.parametrize("extra_layers", [0, 4])
@pytest.mark.parametrize("noise_std", [1e-5, 0.02])
def test_scale_bilaterally_is_lossless(scale_factor, extra_layers, noise_std):
    model = build(tiny_config(), std=0.2)

    big = scale_bilaterally(
        model, scale_factor=scale_factor, extra_layers=extra_layers, noise_std=noise_std
    )

    assert big.config.d_model == 16 * scale_factor
    assert big.config.n_layers == 2 + extra_layers
    assert_lossless(model, big)


def test_scale_bilaterally_is_widen_then_deepen():
    model = build(tiny_config())
    operators = [Widen(scale_factor=3, noise_std=0.01), Deepen(extra_layers=2, init="identity")]

    big = scale_bilaterally(model, scale_factor=3, extra_layers=2, noise_std=0.01, seed=4)

    assert_same_state(big.state_dict(), grow(model, operators, seed=4).state_dict())


sizes = st.integers(1, 6)
factors = st.sampled_from([1, 2, 3, 1.5, 2.5])


@given(rows=sizes, columns=sizes, factor=factors, seed=st.integers(0, 2**32))
@pytest.mark.parametrize("noise_std", [0.0, 0.5])
@pytest.mark.parametrize("dim_mode", ["both", "in", "out"])
def test_hyperclone_weight_keeps_the_product(rows, columns, factor, seed, noise_std, dim_mode):
    rows, columns = 2 * rows, 2 * columns  # so that every factor comes out whole
    weight = keyed_normal((rows, columns), "weight", seed).double()
    x = keyed_normal((columns,), "x", seed).double()

    grown = hyperclone_weight(weight, factor, noise_std, dim_mode, seed)

    new_rows = round(rows * factor) if dim_mode != "in" else rows
    new_columns = round(columns * factor) if dim_mode != "out" else columns
    assert grown.shape == (new_rows, new_columns)
    copied = x[torch.arange(new_columns) % columns]
    expected = (weight @ x)[torch.arange(new_rows) % rows]
    assert max_difference(grown @ copied, expected) <= 1e-12


def test_hyperclone_weight_worked_by_hand():
    weight = torch.tensor([[2.0, 4.0], [6.0, 8.0]])

    # Three inputs from two: the first is copied twice and halved.
    assert hyperclone_weight(weight, 1.5).tolist() == [[1, 4, 1], [3, 8, 3], [1, 4, 1]]
    assert hyperclone_weight(weight, 2, dim_mode="in").tolist() == [[1, 2, 1, 2], [3, 4, 3, 4]]
    assert hyperclone_weight(weight, 1.5, dim_mode="out").tolist() == [[2, 4], [6, 8], [2, 4]]


def test_hyperclone_weight_leaves_its_argument():
    weight = keyed_normal((4, 4), "weight")
    before = weight.clone()

    for mode in ("both", "in", "out"):
        hyperclone_weight(weight, 2, 0.1, mode).fill_(7.0)

    assert torch.equal(weight, before)


def test_hyperclone_weight_noise_makes_copies_differ():
    weight = keyed_normal((4, 4), "weight")
    quiet, noisy = (hyperclone_weight(weight, 2, std, "in") for std in (0.0, 0.1))

    assert torch.equal(quiet[:, :4], quiet[:, 4:])
    assert (noisy[:, :4] - noisy[:, 4:]).abs().min() > 0
    assert not torch.equal(hyperclone_weight(weight, 2, 0.1, "in", seed=1), noisy)


def test_hyperclone_weight_takes_a_live_parameter():
    parameter = nn.Linear(4, 4).weight

    grown = hyperclone_weight(parameter, 2, noise_std=0.1)

    assert grown.shape == (8, 8)
    assert not grown.requires_grad


@pytest.mark.parametrize("factor", [0.5, 1.3])
def test_hyperclone_weight_refuses_sizes_that_are_not_whole(factor):
    with pytest.raises(ValueError, match=f"scale_factor={factor}"):
        hyperclone_weight(torch.ones(4, 4), factor)


def test_hyperclone_weight_refuses_an_unknown_mode():
    with pytest.raises(ValueError, match="dim_mode=rows: must be both, in or out"):
        hyperclone_weight(torch.ones(4, 4), 2, dim_mode="rows")
