"""No logit depends on a later token."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model.tiny_models import (
    EXPERTS,
    build,
    logits_of,
    max_difference,
    random_tokens,
    tiny_config,
)

TIME = 12
SHAPES = {
    "dense": {},
    "experts": EXPERTS,
    "grouped queries": {"n_kv_heads": 2},
    "one key/value head, experts": {"n_kv_heads": 1, **EXPERTS},
}


@cache
def model_of(family, shape):
    return build(tiny_config(family, **SHAPES[shape]), std=0.2)


@pytest.mark.parametrize("family", ["default", "llama"])
@pytest.mark.parametrize("shape", SHAPES)
@given(position=st.integers(0, TIME - 1), shift=st.integers(1, 28), seed=st.integers(0, 5))
def test_earlier_logits_ignore_a_changed_token(family, shape, position, shift, seed):
    model = model_of(family, shape)
    tokens = random_tokens(model.config, time=TIME, seed=seed)
    changed = tokens.clone()
    changed[:, position] = (tokens[:, position] + shift) % model.config.vocab_size

    before, after = logits_of(model, tokens), logits_of(model, changed)

    assert (before - after)[:, :position].abs().sum() <= 1e-12
    assert max_difference(before[:, position:], after[:, position:]) > 1e-6


@pytest.mark.parametrize("family", ["default", "llama"])
def test_other_sequences_of_the_batch_do_not_matter(family):
    model = model_of(family, "experts")
    tokens = random_tokens(model.config)

    alone = logits_of(model, tokens[:1])

    assert max_difference(logits_of(model, tokens)[:1], alone) <= 1e-12


def test_tokens_after_the_longest_sequence_are_refused():
    model = model_of("default", "dense")

    with pytest.raises(ValueError, match="65 tokens; max_seq_len is 64"):
        model(random_tokens(model.config, time=65))
