"""Every lossless operator keeps every logit, in both precisions, on models away from initialisation."""

from functools import cache
from itertools import product

import pytest
import torch

from growlm.growth import Deepen, Upcycle, Widen, grow
from tests.growth.losslessness import TOLERANCE, assert_lossless
from tests.model.tiny_models import EXPERTS, FAMILIES, build, random_tokens, tiny_config

MODELS = list(product(FAMILIES, (True, False), (False, True)))
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
MODEL = pytest.mark.parametrize(("family", "tied", "moe"), MODELS)


@cache
def model_of(family, tied, moe, dtype):
    experts = EXPERTS if moe else {}
    config = tiny_config(family, d_model=32, head_dim=8, tie_embeddings=tied, **experts)
    return build(config, dtype=dtype)


@DTYPES
@MODEL
@pytest.mark.parametrize("scale_factor", [1.5, 2, 2.25, 3])
@pytest.mark.parametrize("noise_std", [0.0, 0.02])
def test_widen(family, tied, moe, dtype, scale_factor, noise_std):
    model = model_of(family, tied, moe, dtype)

    grown = grow(model, [Widen(scale_factor=scale_factor, noise_std=noise_std)])

    assert grown.config.d_model == 32 * scale_factor
    assert_lossless(model, grown)


@DTYPES
@MODEL
@pytest.mark.parametrize(
    "widen",
    [
        Widen(d_model=45, new_channels="copies"),
        Widen(n_heads=6, new_channels="copies"),
        Widen(d_ff=31, new_channels="copies"),
        Widen(scale_factor=1.5, filler="zeros", new_channels="copies"),
    ],
    ids=["residual alone", "heads alone", "hidden alone", "zero fillers"],
)
def test_widen_one_axis(family, tied, moe, dtype, widen):
    model = model_of(family, tied, moe, dtype)

    assert_lossless(model, grow(model, [widen]))


@DTYPES
@MODEL
@pytest.mark.parametrize("placement", ["append", "interleave", "stack"])
def test_deepen(family, tied, moe, dtype, placement):
    model = model_of(family, tied, moe, dtype)

    grown = grow(model, [Deepen(extra_layers=3, placement=placement, init="identity")])

    assert grown.config.n_layers == 5
    assert_lossless(model, grown)


@DTYPES
@MODEL
def test_deepened_blocks_do_nothing_at_all(family, tied, moe, dtype):
    model = model_of(family, tied, moe, dtype)
    grown = grow(model, [Deepen(extra_layers=1, init="identity")])
    x = model.embedding(random_tokens(model.config))
    cos, sin = torch.ones(10, 4, dtype=dtype), torch.zeros(10, 4, dtype=dtype)

    assert torch.equal(grown.blocks[2](x, cos, sin), x)


@DTYPES
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("top_k", [2, 3])
@pytest.mark.parametrize(
    "router",
    [{}, {"router_init": "zeros"}, {"router_init": "zeros", "break_ties": False}],
    ids=["normal", "zeros", "zeros, unbroken"],
)
def test_upcycle(family, tied, dtype, top_k, router):
    model = model_of(family, tied, False, dtype)

    grown = grow(model, [Upcycle(num_experts=6, top_k=top_k, **router)])

    assert grown.config.is_moe
    assert_lossless(model, grown)


@DTYPES
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n_kv_heads", [1, 2])
@pytest.mark.parametrize("scale_factor", [1.5, 2, 3])
def test_widen_grouped_queries(family, dtype, n_kv_heads, scale_factor):
    model = build(tiny_config(family, n_kv_heads=n_kv_heads), std=0.2, dtype=dtype)

    grown = grow(model, [Widen(scale_factor=scale_factor, new_channels="copies")])

    assert grown.config.n_kv_heads == (1 if n_kv_heads == 1 else 2 * scale_factor)
    assert_lossless(model, grown)
