"""Moments in 8 bits: torchao's form, and how they grow."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from growlm.growth import (
    Deepen,
    MultiplyExperts,
    Upcycle,
    Widen,
    build_growth_map,
    grow_optimizer_state,
)
from growlm.growth.eight_bit_moments import (
    CHUNK_ENTRIES,
    MIN_SCALE,
    create_dynamic_map,
    dequantize,
    is_quantizable,
    quantize,
)
from growlm.growth.optimizer_state import (
    convert_moments,
    dequantize_moment,
    expected_state_shapes,
    update_moments,
)
from tests.model.tiny_models import EXPERTS, tiny_config

WIDE = tiny_config(d_model=64, n_heads=4, n_kv_heads=4, head_dim=16, d_ff=128, vocab_size=128)


@pytest.fixture(scope="module")
def torchao():
    """Its tensor class, and the two functions that it quantises with."""
    from torchao.optim import quant_utils, subclass_8bit

    return subclass_8bit.OptimState8bit, quant_utils


BLOCK = 256


def moments(seed, blocks, exponent, signed):
    """Blocks of entries over many decades, one of zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    entries = torch.randn(blocks, BLOCK, generator=generator)
    decades = torch.rand(blocks, BLOCK, generator=generator) * 8
    entries = entries * 10.0 ** (exponent - decades)
    entries[seed % blocks] = 0.0
    return entries if signed else entries.square()


SOME = given(
    seed=st.integers(0, 2**31), blocks=st.integers(1, 40), exponent=st.integers(-18, 4),
    signed=st.booleans(),
)  # fmt: skip


@SOME
def test_codes_and_scales_are_torchaos(torchao, seed, blocks, exponent, signed):
    held_by_torchao, functions = torchao
    moment = moments(seed, blocks, exponent, signed)
    theirs = held_by_torchao.zeros(moment.shape, signed, BLOCK)
    theirs.copy_(moment)

    codes, scale = quantize(moment, signed)

    assert torch.equal(theirs.qmap, create_dynamic_map(signed))
    assert torch.equal(theirs.codes, codes)
    assert torch.equal(theirs.scale, scale)
    assert torch.equal(theirs.dequantize(), dequantize(codes, scale, signed))
    scaled, _ = functions.scale_tensor(moment, BLOCK)
    assert torch.equal(functions.quantize_8bit_with_qmap(scaled, create_dynamic_map(signed)), codes)


def test_a_tensor_larger_than_what_is_turned_at_once():
    moment = moments(0, 2 * CHUNK_ENTRIES // BLOCK + 3, 0, True)
    codes, scale = quantize(moment, True)
    last = quantize(moment[-1:].clone(), True)
    assert torch.equal(codes[-1:], last[0])
    assert torch.equal(scale[-1:], last[1])
    assert torch.equal(dequantize(codes, scale, True)[-1:], dequantize(*last, True))


@SOME
def test_every_entry_is_rounded_to_the_nearest_value(seed, blocks, exponent, signed):
    moment = moments(seed, blocks, exponent, signed).double()
    values = create_dynamic_map(signed).double()
    codes, scale = quantize(moment.float(), signed)
    ratio = (moment.float() / scale[:, None]).double()
    nearest = (ratio[..., None] - values).abs().amin(-1)
    assert ((ratio - values[codes.int()]).abs() - nearest).max() <= 1e-7


@SOME
def test_rounding_twice_is_rounding_once_where_a_block_has_the_code_of_1(
    seed, blocks, exponent, signed
):
    moment = moments(seed, blocks, exponent, signed)
    codes, scale = quantize(moment, signed)
    has_one = (codes == 255).any(-1) | (scale == MIN_SCALE)  # or is too small to be scaled
    again, scale_again = quantize(dequantize(codes, scale, signed), signed)
    assert torch.equal(codes[has_one], again[has_one])
    assert torch.equal(scale[has_one], scale_again[has_one])
    # Else it is not, which is why codes and scales are what is kept: no code stands for -1.
    assert signed or has_one.all()
    lowest = create_dynamic_map(True)[0]
    assert torch.allclose(scale_again[~has_one], -lowest * scale[~has_one], rtol=1e-6)
    assert lowest > -0.995


def plain_states(config):
    states = {}
    for index, (name, tensor) in enumerate(build_growth_map(config, []).tensors.items()):
        generator = torch.Generator().manual_seed(index)
        first, second = (torch.randn(tensor.shape, generator=generator) for _ in range(2))
        states[name] = {"step": torch.tensor(7.0), "exp_avg": first, "exp_avg_sq": second.square()}
    return states


def eight_bit_states(config):
    return {name: convert_moments(state, True) for name, state in plain_states(config).items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, state in one.items():
        assert state.keys() == other[name].keys(), name
        assert all(torch.equal(state[entry], other[name][entry]) for entry in state), name


@pytest.mark.parametrize("mode", ["carry", "asymmetric"])
@pytest.mark.parametrize(
    "operators",
    [
        [Upcycle(4)],
        [Widen(scale_factor=1.5, new_channels="copies")],
        [Widen(d_model=80, n_heads=5, d_ff=160, new_channels="copies")],
        [Deepen(init="identity")],
        [Deepen(init="copy")],
        [
            Upcycle(4),
            Widen(scale_factor=2, new_channels="copies"),
            Deepen(init="identity"),
            MultiplyExperts(2),
        ],
    ],
    ids=["upcycle", "widen", "uneven", "deepen", "copy", "all"],
)
def test_growing_in_8_bits_is_growing_what_they_stand_for(operators, mode):
    growth_map = build_growth_map(WIDE, operators)
    held = eight_bit_states(WIDE)
    plain = {name: convert_moments(state, False) for name, state in held.items()}
    expected = grow_optimizer_state(growth_map, plain, mode)

    grown = grow_optimizer_state(growth_map, eight_bit_states(WIDE), mode)

    assert any("exp_avg_scale" in state for state in grown.values())
    for name, state in expected.items():
        tensor = growth_map.tensors[name]
        if tensor.transforms:
            was_held = "exp_avg_scale" in held[tensor.source]
            state = convert_moments(state, was_held)
            if not was_held:
                state = {entry: state[entry] for entry in ("step", "exp_avg", "exp_avg_sq")}
        else:
            state = held[tensor.source]  # the same codes, not rounded again
        assert_same({name: grown[name]}, {name: state})


def test_shapes_are_those_of_what_is_grown():
    config = tiny_config(d_model=64, head_dim=16, d_ff=128, vocab_size=128, **EXPERTS)
    growth_map = build_growth_map(config, [Widen(d_model=67, n_heads=5, new_channels="copies")])
    held = eight_bit_states(config)
    entries = {name: set(state) for name, state in held.items()}
    grown = grow_optimizer_state(growth_map, held, "carry")
    left_8_bits = 0
    for name, state in grown.items():
        tensor = growth_map.tensors[name]
        expected = expected_state_shapes(entries[tensor.source], tensor.shape)
        assert {entry: tuple(value.shape) for entry, value in state.items()} == expected
        if "exp_avg_scale" in entries[tensor.source]:
            assert ("exp_avg_scale" in state) == is_quantizable(tensor.shape)
            left_8_bits += "exp_avg_scale" not in state
    assert left_8_bits


def test_a_state_in_its_form_is_left_as_it_is():
    (state,) = [s for n, s in eight_bit_states(WIDE).items() if n == "embedding.weight"]
    again = convert_moments(state, True)
    assert all(again[entry] is state[entry] for entry in state)
    plain = convert_moments(state, False)
    assert plain.keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert all(convert_moments(plain, False)[entry] is plain[entry] for entry in plain)


def test_moments_are_changed_in_place():
    state = eight_bit_states(WIDE)["embedding.weight"]
    before = convert_moments({entry: value.clone() for entry, value in state.items()}, False)
    update_moments(state, lambda moment, power: moment.mul_(-2.0 if power == 1 else 4.0))
    assert torch.allclose(dequantize_moment(state, "exp_avg_sq"), 4 * before["exp_avg_sq"])
    changed, expected = dequantize_moment(state, "exp_avg"), -2 * before["exp_avg"]
    assert (changed - expected).abs().max() <= 0.03 * expected.abs().max()


@pytest.mark.parametrize(("shape", "block"), [((17, 256), 256), ((33, 128), 128), ((257, 64), 64)])
def test_blocks_are_smaller_where_256_do_not_divide(torchao, shape, block):
    moment = torch.randn(shape)
    codes, scale = quantize(moment, True)
    theirs = torchao[0].zeros(shape, True, block)
    theirs.copy_(moment)
    assert torch.equal(theirs.codes, codes)
    assert torch.equal(theirs.scale, scale)
    assert torch.equal(theirs.dequantize(), dequantize(codes, scale, True))
    assert is_quantizable(shape)
    assert not is_quantizable((shape[0], block - 1))


def test_scales_without_their_moment_are_no_state():
    growth_map = build_growth_map(WIDE, [Deepen(init="identity")])
    states = {"embedding.weight": {"exp_avg_scale": torch.ones(32)}}
    with pytest.raises(ValueError, match="no rule for the optimizer's state 'exp_avg_scale'"):
        grow_optimizer_state(growth_map, states, "carry")
