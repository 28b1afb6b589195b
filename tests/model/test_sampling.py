"""Continuing a text, token by token."""

import pytest
import torch
from tiny_models import build, tiny_config

from growlm.model.sampling import sample_tokens


def sample(model, num_tokens=8, temperature=1.0, num_token_ids=29, **options):
    return sample_tokens(
        model,
        [3, 1, 4],
        num_tokens,
        temperature=temperature,
        num_token_ids=num_token_ids,
        **options,
    )


@pytest.fixture(scope="module")
def model():
    return build(tiny_config(), std=0.3)


@torch.no_grad()
def test_temperature_zero_takes_the_likeliest_token(model):
    continuation = sample(model, temperature=0)
    tokens = torch.tensor([[3, 1, 4, *continuation]])

    assert len(continuation) == 8
    assert model(tokens)[0, 2:-1].argmax(dim=-1).tolist() == continuation


def test_the_seed_alone_decides(model):
    random_state = torch.get_rng_state()
    first = sample(model, seed=1)
    torch.rand(3)

    assert sample(model, seed=1) == first
    assert any(sample(model, seed=seed) != first for seed in range(2, 6))
    torch.set_rng_state(random_state)


def test_global_random_state_is_untouched(model):
    before = torch.get_rng_state()

    sample(model)

    assert torch.equal(torch.get_rng_state(), before)


def test_no_token_beyond_the_tokenizer(model):
    drawn = {token for seed in range(20) for token in sample(model, num_token_ids=5, seed=seed)}

    assert drawn == set(range(5))


def test_it_ends_before_the_stop_token(model):
    whole = sample(model, temperature=0)

    stopped = sample(model, temperature=0, stop_at=whole[4])

    assert stopped == whole[: whole.index(whole[4])]


def test_it_ends_when_the_sequence_is_full(model):
    assert len(sample(model, num_tokens=1000)) == model.config.max_seq_len - 3


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_kept(training):
    model = build(tiny_config()).train(training)

    sample(model)

    assert model.training is training
