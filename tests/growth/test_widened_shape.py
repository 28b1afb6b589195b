"""The config of a widened model."""

import pytest

from growlm.growth import Deepen, Upcycle, Widen, build_growth_map
from growlm.model import ModelConfig, parameter_report
from tests.model.tiny_models import tiny_config


def widened(operator, **changes):
    return build_growth_map(tiny_config(**changes), [operator]).new_config


@pytest.mark.parametrize(
    ("d_ff", "scale_factor", "expected"), [(24, 2, 48), (24, 2.25, 56), (20, 1.5, 32), (3, 2, 8)]
)
def test_scaled_hidden_width_is_rounded_up_to_a_multiple_of_eight(d_ff, scale_factor, expected):
    assert (
        widened(Widen(scale_factor=scale_factor, new_channels="copies"), d_ff=d_ff).d_ff == expected
    )


def test_named_sizes_are_taken_as_they_are():
    new = widened(Widen(scale_factor=2, d_model=20, d_ff=27, new_channels="copies"))

    assert (new.d_model, new.n_heads, new.d_ff) == (20, 8, 27)


@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "new_heads", "expected"),
    [
        (4, 4, 8, 8),  # whole groups
        (4, 2, 8, 4),
        (6, 3, 8, 4),
        (4, 1, 7, 1),  # one key/value head stays one
        (6, 2, 8, 2),  # 8 is no multiple of the group of 3: copies inside the groups
    ],
)
def test_key_value_heads(n_heads, n_kv_heads, new_heads, expected):
    new = widened(
        Widen(n_heads=new_heads, new_channels="copies"), n_heads=n_heads, n_kv_heads=n_kv_heads
    )

    assert (new.n_heads, new.n_kv_heads) == (new_heads, expected)


def test_the_rest_of_the_config_stays():
    old = tiny_config(rope_theta=500.0, tie_embeddings=False)
    new = build_growth_map(old, [Widen(scale_factor=2, new_channels="copies")]).new_config

    widths = {"d_model": 16, "n_heads": 4, "n_kv_heads": 4, "d_ff": 24}
    assert ModelConfig(**(vars(new) | widths)) == old


@pytest.mark.parametrize(
    ("d_model", "n_layers", "extra_layers", "sizes"),
    [
        (832, 7, 4, [100_038_016, 371_640_256, 2_155_790_208]),
        (512, 12, 3, [63_561_216, 239_986_176, 1_121_872_896]),
    ],
)
def test_published_plans_reach_their_sizes(d_model, n_layers, extra_layers, sizes):
    config = ModelConfig(
        d_model=d_model, n_layers=n_layers, head_dim=d_model // 8, d_ff=4 * d_model
    )
    moe = build_growth_map(config, [Upcycle(num_experts=8)]).new_config
    large = build_growth_map(
        moe, [Widen(scale_factor=2, new_channels="copies"), Deepen(extra_layers, init="identity")]
    ).new_config

    assert [parameter_report(shape).total for shape in (config, moe, large)] == sizes
