"""Random models through random sequences of lossless operators."""

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from growlm.growth import Deepen, MultiplyExperts, Upcycle, Widen, build_growth_map, grow
from growlm.model import ModelConfig
from growlm.runtime.errors import UserError
from tests.growth.losslessness import before_near_ties
from tests.model.drawn_parts import drawn_parts
from tests.model.tiny_models import build, logits_of, max_difference, random_tokens

LARGEST = {"d_model": 80, "n_heads": 24, "d_ff": 120, "n_layers": 8, "num_experts": 30}


@st.composite
def configs(draw):
    """Any family, grouping, width; dense or a mixture."""
    n_kv_heads = draw(st.integers(1, 3))
    num_experts = draw(st.sampled_from([0, 2, 3, 5]))
    head_dim = draw(st.sampled_from([2, 4, 6]))
    n_layers = draw(st.integers(1, 3))
    parts = draw(drawn_parts(head_dim, n_layers, norms_all_heads=True))
    shared_d_ff, expert_d_ff = 0, None
    if num_experts:
        shared_d_ff = draw(st.sampled_from([0, 5]))
        expert_d_ff = draw(st.sampled_from([None, 7]))
        parts["layers"]["mixture"] = draw(st.sampled_from([[], [False, True], [True, False]]))
        if n_layers == 1:
            parts["layers"]["mixture"] = []
        shared_gate = bool(shared_d_ff) and draw(st.booleans())
        parts["routing"] = {"renormalize": draw(st.booleans()), "shared_gate": shared_gate}
    return ModelConfig(
        vocab_size=draw(st.integers(3, 20)),
        d_model=draw(st.integers(4, 20)),
        n_layers=n_layers,
        n_heads=n_kv_heads * draw(st.integers(1, 3)),
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        d_ff=draw(st.integers(1, 24)),
        max_seq_len=16,
        tie_embeddings=draw(st.booleans()),
        num_experts=num_experts,
        top_k=draw(st.integers(2, max(2, num_experts))),
        shared_d_ff=shared_d_ff,
        expert_d_ff=expert_d_ff,
        **parts,
    )


@st.composite
def widenings(draw, config):
    """By a factor, or every axis to a size of its own."""
    noise = draw(st.sampled_from([{"noise_std": 0.0}, {"noise_std": 0.02}, {"noise_snr_db": 10.0}]))
    noise["split"] = draw(st.sampled_from(["equal", "1:2"]))
    if draw(st.booleans()):
        noise = {"new_channels": "fresh"}
    filler = draw(st.sampled_from(["random", "zeros"]))
    if draw(st.booleans()):
        factor = draw(st.sampled_from([1.25, 1.5, 2, 2.25, 3]))
        return Widen(scale_factor=factor, filler=filler, **noise)
    group = config.n_heads // config.n_kv_heads
    step = draw(st.sampled_from([group, config.n_kv_heads]))
    return Widen(
        d_model=config.d_model + draw(st.integers(0, 2 * config.d_model)),
        n_heads=config.n_heads + step * draw(st.integers(0, 3)),
        d_ff=config.d_ff + draw(st.integers(0, 2 * config.d_ff)),
        filler=filler,
        **noise,
    )


@st.composite
def upcyclings(draw, config):
    num_experts = draw(st.integers(2, 5))
    finer = [parts for parts in (1, 2, 3) if config.d_ff % parts == 0]
    return Upcycle(
        num_experts=num_experts,
        top_k=draw(st.integers(2, num_experts)),
        router_init=draw(st.sampled_from(["normal", "zeros"])),
        granularity=draw(st.sampled_from(finer)),
    )


def multiplications():
    return st.builds(
        MultiplyExperts, factor=st.integers(2, 3), noise_std=st.sampled_from([0.0, 0.02])
    )


def deepenings():
    return st.builds(
        Deepen,
        init=st.sampled_from(["identity", "fresh"]),
        extra_layers=st.integers(1, 3),
        placement=st.sampled_from(["append", "interleave", "stack"]),
    )


@st.composite
def growths(draw):
    """A config and one to four operators that it allows."""
    config = draw(configs())
    operators = []
    grown = config
    for _ in range(draw(st.integers(1, 4))):
        kinds = [widenings(grown), deepenings()] + (
            [multiplications()] if grown.is_moe else [upcyclings(grown)]
        )
        operator = draw(st.one_of(kinds))
        try:
            after = build_growth_map(grown, [operator]).new_config
        except UserError:  # heads that do not come out whole, or nothing grows
            continue
        if all(getattr(after, field) <= size for field, size in LARGEST.items()):
            grown = after
            operators.append(operator)
    hypothesis.assume(operators)
    return config, operators


def check_lossless(config, operators, seed, std):
    model = build(config, seed, std)
    tokens = random_tokens(config, batch=2, time=7, seed=seed)
    expected = logits_of(model, tokens)

    grown = grow(model, operators, seed=seed)

    scale = max(1.0, expected.abs().max().item())
    assert max_difference(logits_of(grown, tokens), expected) <= 1e-10 * scale
    table = build_growth_map(config, operators)
    assert table.lossless
    assert table.new_config == grown.config
    assert all(parameter.dtype == torch.float64 for parameter in grown.parameters())
    check_single_precision(model.float(), operators, seed, tokens)


def check_single_precision(model, operators, seed, tokens):
    routings = []
    with torch.no_grad():
        expected = model(tokens, routings)
    clear = before_near_ties(routings, tokens.shape)

    actual = logits_of(grow(model, operators, seed=seed), tokens)

    hypothesis.assume(
        clear.any()
    )  # with near ties from the first token on, there is nothing to compare
    scale = max(1.0, expected.abs().max().item())
    assert (actual - expected).abs()[clear].max().item() <= 2e-5 * scale


@hypothesis.settings(max_examples=25)
@given(growth=growths(), seed=st.integers(0, 2**32), std=st.sampled_from([0.05, 0.4]))
def test_any_sequence_keeps_the_function(growth, seed, std):
    check_lossless(*growth, seed, std)


@pytest.mark.slow
@hypothesis.settings(max_examples=200)
@given(growth=growths(), seed=st.integers(0, 2**32), std=st.sampled_from([0.05, 0.4]))
def test_any_sequence_keeps_the_function_more_cases(growth, seed, std):
    check_lossless(*growth, seed, std)
