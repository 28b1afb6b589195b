"""In bf16 and fp16, parts of a weight add up to it, to the bit; what cannot be exact is named."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from growlm.checkpoint import load_model, save_model
from growlm.checkpoint.offline_growth import grow_checkpoint
from growlm.growth import (
    Deepen,
    GrowthRng,
    MultiplyExperts,
    Upcycle,
    Widen,
    build_growth_map,
    grow,
    hyperclone_weight,
)
from growlm.growth.channel_map import ChannelMap
from growlm.growth.grow_model import apply_growth
from growlm.growth.transforms.half_precision import move_between_many, move_between_two
from growlm.growth.transforms.noise import ZeroSumNoise
from growlm.growth.transforms.tensor_transforms import Copy, Split
from growlm.verification import detailed_growth_check
from tests.model.tiny_models import (
    EXPERTS,
    assert_same_state,
    build,
    logits_of,
    max_difference,
    random_tokens,
    tiny_config,
)

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
LLAMA = {"family": "llama", "n_kv_heads": 2, "tie_embeddings": True}
MIXTRAL = {"family": "llama", "n_kv_heads": 2, "tie_embeddings": False} | EXPERTS


@st.composite
def weights(draw):
    """A matrix of bf16 or fp16 numbers: of any bits, subnormal, near the largest, or as trained ones are."""
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float16]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind, shape = draw(st.sampled_from(["bits", "subnormal", "large", "trained"])), (5, 12)
    if kind == "trained":
        x = torch.from_numpy(generator.normal(0, 0.02, shape)).to(dtype)
    else:
        bits = torch.from_numpy(generator.integers(-(2**15), 2**15, shape, dtype=np.int16))
        x = bits.view(dtype)
        info = torch.finfo(dtype)
        if kind == "subnormal":
            x = (bits % 2**7).view(dtype) * bits.sign()
        elif kind == "large":
            x = torch.where(x.isfinite(), x, 1.0) % 1 * info.max
        x = torch.where(x.isfinite(), x, info.max)
    x[0, :3] = torch.tensor([0.0, -0.0, torch.finfo(dtype).max])
    return x


@st.composite
def maps(draw, old_size=12):
    """A map to any number of copies, equal or not, some channels with one more and some fillers."""
    new_size = draw(st.integers(old_size, 7 * old_size))
    source = torch.arange(new_size) % old_size
    if draw(st.booleans()):
        order = np.random.default_rng(draw(st.integers(0, 99))).permutation(new_size)
        source = source[torch.from_numpy(order)]
    equal = ChannelMap.with_equal_shares(old_size, source)
    return draw(st.sampled_from([equal, ChannelMap.with_rising_shares(old_size, source)]))


def assert_sums_are_exact(parts, channels, total):
    """fp64 holds the parts of a weight and their sum without rounding."""
    assert parts.isfinite().all()
    assert torch.equal(channels.sum_copies(parts.double(), 1), total.double())


@settings(max_examples=40)
@given(weights(), maps(), st.sampled_from([0.0, 1e-6, 1e-2, 10.0]), st.booleans())
def test_parts_add_up_to_the_weight(weight, channels, std, snr):
    parts = Split(1, channels).transform_weight(weight, GrowthRng(0))
    assert_sums_are_exact(parts, channels, weight)

    noise = ZeroSumNoise(1, channels, std, 10.0 if snr else None, (0, "x"))
    noisy, again = (noise.transform_weight(parts.clone(), GrowthRng(3)) for _ in range(2))

    assert noisy.dtype == weight.dtype
    assert_sums_are_exact(noisy, channels, weight)
    assert torch.equal(noisy, again)
    whole = weight.index_select(1, channels.source)
    assert ((noisy * whole.sign() >= 0) & (noisy.abs() <= whole.abs())).all(), "between 0 and all"


@settings(max_examples=40)
@given(weights(), maps(), st.sampled_from([1e-6, 1e-2, 10.0]), st.booleans())
def test_noise_on_whole_copies_keeps_their_sum(weight, channels, std, snr):
    """As on experts that are copied: their gates are divided, not their weights."""
    copies = Copy(1, channels).transform_weight(weight, GrowthRng(0))
    total = channels.sum_copies(copies.double(), 1)
    noise = ZeroSumNoise(1, channels, std, -6.0 if snr else None, (0, "x"))
    noisy = noise.transform_weight(copies, GrowthRng(1))
    assert_sums_are_exact(noisy, channels, total)


@HALF
@pytest.mark.parametrize("copies", [2, 3, 4, 5, 7])
def test_parts_are_as_near_to_their_shares_as_the_grid_allows(dtype, copies):
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    channels = ChannelMap.round_robin(16, 16 * copies)
    parts = Split(1, channels).transform_weight(weight, GrowthRng(0))
    share = weight.double().repeat(1, copies) / copies
    step = torch.finfo(dtype).eps * 2 ** share.abs().log2().floor()
    off = (parts.double() - share).abs()
    assert (off <= step).all()
    assert bool(off.any()) == (copies not in (2, 4)), "halves and quarters are exact"


@HALF
@pytest.mark.parametrize("copies", [2, 3])
def test_noise_has_the_level_that_was_asked_for(dtype, copies):
    """Where no entry is too small for it: one over a source's copies less than asked, as in fp32."""
    weight = (1 + torch.rand(64, 64, generator=torch.Generator().manual_seed(0))).to(dtype)
    channels = ChannelMap.round_robin(64, 64 * copies)
    rng = GrowthRng(0)
    parts = Split(1, channels).transform_weight(weight, rng)
    noisy = ZeroSumNoise(1, channels, 0.03, None, (0, "x")).transform_weight(parts.clone(), rng)
    noise = noisy.double() - weight.double().repeat(1, copies) / copies
    assert float(noise.std()) == pytest.approx(0.03 * (1 - 1 / copies) ** 0.5, rel=0.05)
    assert abs(float(noise.mean())) < 1e-3
    level = rng.noise_log.levels[0, "x"]
    assert (level["capped"], level["limited"]) == (False, 0.0)


@HALF
def test_moves_that_need_no_rounding_are_made_as_asked(dtype):
    moves = torch.tensor([[0.25, -0.25, 0.0], [0.0, 0.5, -0.5], [-0.0, 0.0, 0.0]]).T
    three = list(torch.ones(3, 3, dtype=dtype))
    move_between_many(three, list(moves.clone()))
    assert torch.equal(torch.stack(three).float(), 1 + moves)
    negative = list(-torch.ones(3, 3, dtype=dtype))
    move_between_many(negative, list(moves.clone()))
    assert torch.equal(torch.stack(negative).float(), moves - 1)
    for sign in (1, -1):
        two = [torch.full((3,), sign, dtype=dtype) for _ in range(2)]
        move_between_two(*two, moves[0].clone())
        assert torch.equal(torch.stack(two).float(), sign + torch.stack((moves[0], -moves[0])))


@HALF
def test_moves_beyond_a_copy_are_reduced_for_all(dtype):
    copies = list(torch.ones(3, 1, dtype=dtype))
    move_between_many(copies, [torch.tensor([-2.0]), torch.tensor([1.0]), torch.tensor([1.0])])
    assert [float(copy) for copy in copies] == [0.0, 1.5, 1.5]


@HALF
@pytest.mark.parametrize("copies", [2, 3])
def test_the_largest_number_does_not_overflow(dtype, copies):
    """On whole copies: the sum may be beyond the precision, as long as no copy is."""
    largest = torch.finfo(dtype).max
    weight = torch.tensor([[largest, -largest, largest / 1.5]] * 4, dtype=dtype)
    channels = ChannelMap.round_robin(3, 3 * copies)
    whole = Copy(1, channels).transform_weight(weight, GrowthRng(0))
    noisy = ZeroSumNoise(1, channels, 10.0, -6.0, (0, "x")).transform_weight(whole, GrowthRng(1))
    assert_sums_are_exact(noisy, channels, weight.double() * copies)


@HALF
def test_noise_larger_than_a_weight_is_limited_and_recorded(dtype):
    weight = torch.full((8, 8), 2.0**-6, dtype=dtype)
    weight[:, 1:] = 1.0  # so that the matrix has a deviation above the small ones
    channels = ChannelMap.round_robin(8, 16)
    rng = GrowthRng(0)
    parts = Split(1, channels).transform_weight(weight, rng)
    noisy = ZeroSumNoise(1, channels, 0.1, None, (0, "x")).transform_weight(parts, rng)
    assert rng.noise_log.levels[0, "x"]["limited"] == 1 / 8
    assert rng.noise_log.summarize()["limited_max"] == 1 / 8
    small = noisy[:, 0].double() / weight[:, 0].double()
    assert ((small >= 0) & (small <= 1)).all()
    assert small.std() > 0.2, "it is spread over the whole weight"


@HALF
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_stacks(dtype, axis):
    stack = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    channels = ChannelMap.round_robin(stack.shape[axis], 2 * stack.shape[axis] + 1)
    rng = GrowthRng(0)
    parts = Split(axis, channels).transform_weight(stack, rng)
    plain = parts.clone()
    noisy = ZeroSumNoise(axis, channels, 0.05, None, (0, "x")).transform_weight(parts, rng)
    assert torch.equal(channels.sum_copies(noisy.double(), axis), stack.double())
    assert (noisy != plain).float().mean() > 0.5


def test_copies_by_hand():
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)).bfloat16()
    grown = hyperclone_weight(weight, 2.5, noise_std=0.1)
    sums = ChannelMap.round_robin(10, 25).sum_copies(grown.double(), 1)
    assert torch.equal(sums, weight.double()[torch.arange(15) % 6])


EXACT = {
    "x2 copies": [Widen(scale_factor=2, noise_std=0.0)],
    "x2 noise": [Widen(scale_factor=2, noise_std=1e-2)],
    "x3 noise": [Widen(scale_factor=3, noise_std=1e-2)],
    "x3 and x2": [Widen(scale_factor=3, noise_std=0.0), Widen(scale_factor=2, noise_snr_db=10.0)],
    "1:2": [Widen(scale_factor=2, split="1:2", noise_std=1e-2)],
    "x4 fresh": [Widen(scale_factor=4)],
    "hidden units": [Widen(d_ff=40, noise_std=1e-2)],
    "deeper": [Deepen(2)],
}


@HALF
@pytest.mark.parametrize("model", [LLAMA, MIXTRAL], ids=["llama", "mixtral"])
@pytest.mark.parametrize("operators", EXACT.values(), ids=EXACT)
def test_exact_growths_keep_the_function_of_the_rounded_weights(dtype, model, operators):
    """In fp64, where a single rounded weight would show."""
    old = build(tiny_config(**model), dtype=dtype)
    growth_map = build_growth_map(old.config, operators)
    new = grow(old, operators, seed=1)
    assert growth_map.inexact_tensors(dtype) == []
    tokens = random_tokens(old.config)
    expected = logits_of(old.double(), tokens)
    assert max_difference(logits_of(new.double(), tokens), expected) < 1e-12


@HALF
@pytest.mark.parametrize("factor", [2, 3])
def test_experts(dtype, factor):
    old = build(tiny_config(**LLAMA), dtype=dtype)
    tokens = random_tokens(old.config)
    mixture = grow(old, [Upcycle(4)])
    new = grow(mixture, [MultiplyExperts(factor, noise_std=1e-2)])
    assert not torch.equal(*new.blocks[0].feed_forward.experts.down[[0, 4]])
    expected = logits_of(old.double(), tokens)
    assert max_difference(logits_of(mixture.double(), tokens), expected) < 1e-12
    assert max_difference(logits_of(new.double(), tokens), expected) < 1e-12


@HALF
@pytest.mark.parametrize(
    ("operators", "reasons"),
    [
        ([Widen(scale_factor=2)], {"times 0.707107"}),
        ([Widen(scale_factor=1.5, noise_std=1e-2)], {"times 0.816497"}),
        ([Widen(scale_factor=2), Widen(scale_factor=2)], {"times 0.707107"}),
    ],
    ids=["x2 fresh", "x1.5 copies", "twice"],
)
def test_what_is_rounded_is_named(dtype, operators, reasons):
    old = build(tiny_config(**LLAMA), dtype=dtype)
    growth_map = build_growth_map(old.config, operators)
    inexact = growth_map.inexact_tensors(dtype)
    assert {each.reason for each in inexact} == reasons
    assert {each.name for each in inexact} == {n for n in growth_map.tensors if "norm" in n}
    assert growth_map.inexact_tensors(torch.float32) == []
    new = grow(old, operators)

    # With these tensors as they are in fp64, nothing else is rounded.
    exact = grow(build(tiny_config(**LLAMA), dtype=dtype).double(), operators).state_dict()
    grown = new.double().state_dict()
    tokens = random_tokens(old.config)
    expected = logits_of(old.double(), tokens)
    moved = float((logits_of(new, tokens) - expected).std() / expected.std())
    expected_change = growth_map.expected_logit_change(dtype)
    assert expected_change / 4 < moved < expected_change * 2
    for each in inexact:
        grown[each.name].copy_(exact[each.name])
    assert max_difference(logits_of(new, tokens), expected) < 1e-12


def test_the_mean_in_the_fillers_of_a_layernorm_is_rounded():
    config = tiny_config(tie_embeddings=False)
    found = build_growth_map(config, [Widen(scale_factor=4)]).inexact_tensors(torch.bfloat16)
    assert {each.reason for each in found} == {"the mean of the other channels"}
    assert "embedding.weight" in {each.name for each in found}
    assert not [each.name for each in found if "norm" in each.name]


def test_precisions_by_tensor():
    growth_map = build_growth_map(tiny_config(**LLAMA), [Widen(scale_factor=2)])
    fp32_norms = {n: torch.float32 if "norm" in n else torch.bfloat16 for n in growth_map.tensors}
    assert growth_map.inexact_tensors(fp32_norms) == []
    assert growth_map.describe_rounding(fp32_norms) == [
        "Nothing is rounded in bfloat16: copies of a weight add up to it, to the bit"
    ]
    assert growth_map.describe_rounding(torch.float32) == []
    rounded, moved = growth_map.describe_rounding(torch.bfloat16)
    assert rounded.startswith("Rounded in bfloat16: 5 tensors (times 0.707107)")
    assert "dtype=float32" in moved


def test_the_growth_of_a_checkpoint_and_its_check_say_what_was_rounded(tmp_path):
    old = build(tiny_config(**MIXTRAL), dtype=torch.bfloat16)
    save_model(old, tmp_path / "small", {})
    growth_map = grow_checkpoint(tmp_path / "small", tmp_path / "large", [Widen(scale_factor=2)])
    assert "5 tensors (times 0.707107)" in growth_map.description[-2]
    assert "another expert" in growth_map.description[-1]
    new = load_model(tmp_path / "large")[0]
    report = detailed_growth_check(
        old_model=old,
        new_model=new,
        probe=random_tokens(old.config),
        device="cpu",
        growth_map=growth_map,
    )
    functional = report.checks["functional"]
    assert functional.figures["rounded_tensors"] == 5
    assert 0 < functional.figures["logit_change"] < functional.figures["expected_logit_change"] * 2
    assert "5 tensors were rounded, which moved the logits by" in functional.summary


@HALF
def test_on_disk_as_in_memory(tmp_path, dtype):
    old = build(tiny_config(**MIXTRAL), dtype=dtype)
    save_model(old, tmp_path / "small", {})
    operators = [MultiplyExperts(3), Widen(scale_factor=3, noise_std=1e-2)]
    grow_checkpoint(tmp_path / "small", tmp_path / "large", operators, seed=5)
    large = load_model(tmp_path / "large")[0]
    assert_same_state(large.state_dict(), grow(old, operators, 5).state_dict())


def test_blocks_of_any_size_get_the_same_parts(monkeypatch):
    from growlm.growth.transforms import half_precision

    weight = torch.randn(2, 6, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    channels = ChannelMap.round_robin(40, 120)
    whole = Split(2, channels).transform_weight(weight, GrowthRng(0))
    monkeypatch.setattr(half_precision, "BLOCK_ENTRIES", 7)
    assert torch.equal(Split(2, channels).transform_weight(weight, GrowthRng(0)), whole)


@HALF
@pytest.mark.parametrize("model", [LLAMA, MIXTRAL], ids=["llama", "mixtral"])
def test_the_checks_find_the_sums_exact(dtype, model):
    old = build(tiny_config(**model), dtype=dtype)
    operators = [Widen(scale_factor=3, noise_std=1e-2)]
    growth_map = build_growth_map(old.config, operators)
    rng = GrowthRng(0)
    new = apply_growth(old, growth_map, rng)
    report = detailed_growth_check(
        old_model=old,
        new_model=new,
        probe=random_tokens(old.config),
        device="cpu",
        growth_map=growth_map,
    )
    assert report, report.checks
    assert report.checks["symmetry"].figures["noise_residue"] == 0.0
    assert report.max_logit_difference < 1e-5
    assert report.checks["weights"].status == "passed"
