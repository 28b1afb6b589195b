"""The filters of a draw against transformers' own, and the draw against the probabilities."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from growlm.inference.sampling import (
    Sampling,
    apply_repetition_penalty,
    filter_candidates,
    sample_tokens,
)
from growlm.runtime.errors import UserError
from growlm.runtime.field_limits import check_limits

VOCABULARY = 40

seeds = st.integers(0, 10**6)


def random_logits(seed, batch=4):
    """Without ties: what becomes of those is a matter of taste."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(batch, VOCABULARY, generator=generator, dtype=torch.float64)


def spread(probabilities, ids):
    """(B, N) candidates as (B, V) probabilities."""
    if ids is None:
        return probabilities
    return torch.zeros(len(ids), VOCABULARY, dtype=torch.float64).scatter(1, ids, probabilities)


@settings(max_examples=80, deadline=None)
@given(
    seed=seeds,
    temperature=st.floats(0.1, 5),
    top_k=st.integers(0, VOCABULARY + 5),
    top_p=st.floats(0.01, 1.0),
)
def test_filters_are_those_of_transformers(seed, temperature, top_k, top_p):
    from transformers.generation import logits_process

    logits = random_logits(seed)
    expected = logits_process.TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        expected = logits_process.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = logits_process.TopPLogitsWarper(top_p)(None, expected)

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    probabilities, ids = filter_candidates(logits, sampling)

    found = spread(probabilities, ids)
    found = found / found.sum(dim=-1, keepdim=True)
    assert (found - expected.softmax(dim=-1)).abs().max() <= 1e-12


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 5e-324])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_next_to_no_temperature_takes_the_likeliest_token(temperature, filters):
    logits = random_logits(0).float()
    draws = torch.tensor([0.0, 0.3, 0.7, 1 - 2**-53], dtype=torch.float64)
    found = sample_tokens(logits, Sampling(temperature=temperature, **filters), draws)
    assert torch.equal(found, logits.argmax(dim=-1))


@settings(max_examples=30, deadline=None)
@given(seed=seeds, penalty=st.floats(0.5, 3))
def test_the_penalty_is_that_of_transformers(seed, penalty):
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    logits = random_logits(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    tokens = torch.randint(VOCABULARY, (4, 12), generator=generator)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(tokens, logits)
    seen = torch.zeros(4, VOCABULARY, dtype=torch.bool).scatter(1, tokens, True)
    assert (apply_repetition_penalty(logits, seen, penalty) - expected).abs().max() <= 1e-12


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(top_k=5), Sampling(top_p=0.7), Sampling(temperature=2.0)]
)
def test_draws_come_as_often_as_their_probability(sampling):
    """Evenly spread draws make every frequency exact to one part in their number."""
    count = 100_000
    logits = random_logits(0, batch=1)
    expected = spread(*filter_candidates(logits, sampling))[0]
    expected = expected / expected.sum()
    draws = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens = sample_tokens(logits.expand(count, -1), sampling, draws)
    frequencies = torch.bincount(tokens, minlength=VOCABULARY) / count
    assert (frequencies - expected).abs().max() <= 1.5 / count
    assert bool((frequencies[expected == 0] == 0).all())


@settings(max_examples=60, deadline=None)
@given(seed=seeds, draw=st.floats(0, 1, exclude_max=True), top_p=st.sampled_from([0.3, 1.0]))
def test_no_draw_takes_what_was_filtered(seed, draw, top_p):
    logits = random_logits(seed).float()
    logits[:, -3:] = -torch.inf
    draws = torch.full((4,), draw, dtype=torch.float64)
    for value in (draws, torch.full_like(draws, 1 - 2**-53), torch.zeros_like(draws)):
        sampling = Sampling(top_p=top_p)
        tokens = sample_tokens(logits, sampling, value)
        kept = spread(*(x if x is None or x.dtype == torch.int64 else x.double()
                        for x in filter_candidates(logits, sampling)))  # fmt: skip
        assert bool((kept.gather(1, tokens.unsqueeze(1)) > 0).all())


def test_temperature_zero_takes_the_likeliest():
    logits = random_logits(1)
    assert torch.equal(sample_tokens(logits, Sampling(temperature=0), None), logits.argmax(dim=-1))


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_told(temperature, value):
    logits = random_logits(1)
    logits[2, 5] = value
    tokens = sample_tokens(
        logits, Sampling(temperature=temperature), torch.full((4,), 0.5).double()
    )
    assert (tokens == -1).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("repetition_penalty", 0.0),
    ],
)
def test_settings_that_cannot_be(field, value):
    with pytest.raises(UserError, match=field):
        check_limits(Sampling(**{field: value}))
