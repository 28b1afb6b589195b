"""Noise that makes copies differ and cancels over them."""

import pytest
import torch

from growlm.growth import GrowthRng, Widen, apply_growth, build_growth_map
from growlm.growth.channel_map import ChannelMap
from growlm.growth.transforms.fused import apply_to_weight
from growlm.growth.transforms.matrix_std import compute_matrix_std
from growlm.growth.transforms.noise import ZeroSumNoise
from growlm.model.axes import Role, axes_table
from tests.model.tiny_models import (
    EXPERTS,
    build,
    logits_of,
    max_difference,
    random_tokens,
    tiny_config,
)

MODEL = pytest.mark.parametrize(
    ("family", "changes"),
    [("default", {}), ("llama", {"tie_embeddings": False, "n_kv_heads": 2}), ("llama", EXPERTS)],
    ids=["default", "llama, grouped, untied", "llama, experts"],
)


def widened_twice(model, **widen):
    """The model widened with and without noise, the noise by tensor name, the map and what was drawn."""
    quiet = widen | {"noise_std": 0.0, "noise_snr_db": None}
    without = build_growth_map(model.config, [Widen(**quiet)])
    growth_map = build_growth_map(model.config, [Widen(**widen)])
    draws = GrowthRng(0)
    plain = apply_growth(model, without, GrowthRng(0)).state_dict()
    noisy = apply_growth(model, growth_map, draws).state_dict()
    return plain, {name: noisy[name] - plain[name] for name in noisy}, growth_map, draws


def read_dimension(row):
    """Which dimension of a parameter reads an axis, and which axis; None if none does."""
    for position, dim in enumerate(row.label.dims):
        if dim.role is Role.READS:
            return position, dim.axis
    return None


@MODEL
@pytest.mark.parametrize("scale_factor", [1.5, 2, 3])
def test_noise_sums_to_zero_over_the_copies_of_each_source(family, changes, scale_factor):
    model = build(tiny_config(family, **changes))
    _, noise, growth_map, _ = widened_twice(model, scale_factor=scale_factor, noise_std=0.02)
    noisy_tensors = 0

    for name, row in axes_table(model).items():
        read = read_dimension(row)
        if read is None or read[1] not in growth_map.axes:
            continue
        position, channels = read[0], growth_map.axes[read[1]]
        columns = noise[name].movedim(position, 0)
        for source in range(channels.old_size):
            copies = columns[channels.source == source]
            assert copies.sum(dim=0).abs().max() <= 1e-15
            if len(copies) > 1:
                assert (copies.abs() > 0).all(), "every copy of every row is moved"
                noisy_tensors += 1

    assert noisy_tensors


@MODEL
@pytest.mark.parametrize("scale_factor", [1.5, 2])
def test_single_copies_and_fillers_get_none(family, changes, scale_factor):
    model = build(tiny_config(family, **changes))
    _, noise, growth_map, _ = widened_twice(model, scale_factor=scale_factor, noise_std=0.02)

    for name, row in axes_table(model).items():
        read = read_dimension(row)
        if read is None or read[1] not in growth_map.axes:
            continue
        channels = growth_map.axes[read[1]]
        alone = torch.tensor(
            [source < 0 or (channels.source == source).sum() == 1 for source in channels.source]
        )
        assert alone.any() == (scale_factor == 1.5)
        assert not noise[name].movedim(read[0], 0)[alone].any()


@MODEL
def test_norms_embeddings_and_biases_get_none(family, changes):
    model = build(tiny_config(family, **changes))
    _, noise, _, _ = widened_twice(model, scale_factor=2, noise_std=0.02)

    still = {name for name, row in axes_table(model).items() if read_dimension(row) is None}

    assert {"embedding.weight", "final_norm.weight", "blocks.0.attention_norm.weight"} <= still
    assert {name for name in noise if not noise[name].any()} == still


def expected_std(sigma, copies):
    """Of normal noise less its mean over the copies."""
    return sigma * (1 - 1 / copies) ** 0.5


def wide_model(**changes):
    """Wide enough for sample standard deviations."""
    return build(tiny_config(d_model=64, head_dim=16, d_ff=256, **changes), std=0.05)


@pytest.mark.parametrize("copies", [2, 3])
def test_small_noise_has_the_standard_deviation_asked_for(copies):
    _, noise, _, draws = widened_twice(wide_model(), scale_factor=copies, noise_std=1e-4)

    name = "blocks.1.feed_forward.up.weight"

    assert draws.noise_log.levels[0, name] == {"sigma": pytest.approx(1e-4), "capped": False}
    assert noise[name].std().item() == pytest.approx(expected_std(1e-4, copies), rel=0.02)


def test_large_noise_is_capped_at_the_matrix_own_standard_deviation():
    plain, noise, _, draws = widened_twice(wide_model(), scale_factor=2, noise_std=5.0)

    for _, name in draws.noise_log.levels:
        own = plain[name].std(correction=0).item()
        assert draws.noise_log.levels[0, name] == {
            "sigma": pytest.approx(own, rel=1e-6),
            "capped": True,
        }
        assert noise[name].std().item() == pytest.approx(expected_std(own, 2), rel=0.1)
    assert (0, "blocks.0.attention.output.weight") in draws.noise_log.levels


def test_every_expert_has_a_cap_of_its_own():
    model = wide_model(**EXPERTS)
    stack = "blocks.0.feed_forward.experts.up"
    with torch.no_grad():
        model.state_dict()[stack][1] *= 1e-3

    plain, noise, _, _ = widened_twice(model, scale_factor=2, noise_std=5.0)

    for expert in (0, 1):
        own = plain[stack][expert].std(correction=0).item()
        assert noise[stack][expert].std().item() == pytest.approx(expected_std(own, 2), rel=0.05)


@pytest.mark.parametrize(("decibels", "ratio"), [(0.0, 1.0), (20.0, 0.1), (10.0, 10**-0.5)])
def test_signal_to_noise_ratio(decibels, ratio):
    plain, noise, _, draws = widened_twice(wide_model(), scale_factor=2, noise_snr_db=decibels)

    for (_, name), record in draws.noise_log.levels.items():
        sigma = ratio * plain[name].std(correction=0).item()
        assert record == {"sigma": pytest.approx(sigma, rel=1e-6), "capped": False}
        assert noise[name].std().item() == pytest.approx(expected_std(sigma, 2), rel=0.1)
    assert (0, "blocks.0.attention.output.weight") in draws.noise_log.levels


def test_zero_matrices_get_none():
    model = build(tiny_config())
    name = "blocks.0.attention.output.weight"
    with torch.no_grad():
        model.state_dict()[name].zero_()

    _, noise, _, draws = widened_twice(model, scale_factor=2, noise_std=0.02)

    assert draws.noise_log.levels[0, name] == {"sigma": 0.0, "capped": True}
    assert not noise[name].any()


def test_uneven_copies_cancel_within_each_source():
    channels = ChannelMap.with_equal_shares(3, torch.tensor([0, 1, 0, 2, 0, 1, -1]))
    piece = ZeroSumNoise(1, channels, 1.0, None, (0, "matrix"))
    x = torch.ones(5, 7, dtype=torch.float64)
    x[0] = 3.0  # a matrix of some standard deviation

    noise = piece.transform_weight(x.clone(), GrowthRng(0)) - x

    assert noise[:, [0, 2, 4]].sum(dim=1).abs().max() < 1e-15
    assert noise[:, [1, 5]].sum(dim=1).abs().max() < 1e-15
    assert not noise[:, [3, 6]].any()
    assert noise[:, [0, 1, 2, 4, 5]].all()


def test_row_paired_noise_does_not_cancel():
    """The control: + on one half of the outputs and − on the other is no substitute."""
    model = build(tiny_config())
    tokens = random_tokens(model.config)
    expected = logits_of(model, tokens)
    plain = apply_growth(
        model, build_growth_map(model.config, [Widen(scale_factor=2, noise_std=0.0)]), GrowthRng(0)
    )
    assert max_difference(logits_of(plain, tokens), expected) <= 1e-10

    matrix = plain.blocks[0].feed_forward.up.weight
    noise = 0.02 * torch.randn(24, 32, dtype=matrix.dtype, generator=torch.Generator())
    with torch.no_grad():
        matrix += torch.cat((noise, -noise))

    assert max_difference(logits_of(plain, tokens), expected) > 1e-4


@MODEL
@pytest.mark.parametrize(("scale_factor", "repeats"), [(1.5, False), (2.0, True), (3.0, True)])
def test_the_deviation_of_a_part_is_that_of_the_matrix(family, changes, scale_factor, repeats):
    """Rows that repeat others are not looked at, and the rest has the same mean and deviation."""
    model = build(tiny_config(family, **changes))
    operators = [Widen(scale_factor=scale_factor, noise_std=0.02)]
    growth_map = build_growth_map(model.config, operators)
    parts = 0
    for tensor_map in growth_map.tensors.values():
        for place, piece in enumerate(tensor_map.transforms):
            if isinstance(piece, ZeroSumNoise):
                source = model.state_dict()[tensor_map.source]
                whole = apply_to_weight(tensor_map.transforms[:place], source, GrowthRng(0))
                part = (
                    whole
                    if piece.repeated_rows is None
                    else whole.narrow(piece.repeated_rows[0], 0, piece.repeated_rows[1])
                )
                assert torch.allclose(
                    compute_matrix_std(part), compute_matrix_std(whole), rtol=1e-9
                )
                parts += part.numel() < whole.numel()
    assert bool(parts) == repeats
