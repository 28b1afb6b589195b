"""Documents that are packed into one sequence have the logits that each has alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from growlm.model import document_positions
from growlm.model.layers.causal_attention import _MatmulAttention, causal_attention
from growlm.model.layers.document_masks import DocumentMasks, document_lengths
from growlm.model.loss import token_losses as losses_of
from tests.model.drawn_parts import drawn_parts
from tests.model.test_causal_attention import inputs
from tests.model.tiny_models import (
    EXPERTS,
    build,
    logits_of,
    max_difference,
    random_tokens,
    tiny_config,
)

EOS = 0
HEAD_DIM = 4


def document(config, length, seed):
    """One row of random tokens with the end of text at its end and nowhere else."""
    tokens = random_tokens(config, batch=1, time=length, seed=seed).clamp(min=1)
    tokens[:, -1] = EOS
    return tokens


@torch.no_grad()
def packed_and_alone(model, documents):
    packed = torch.cat(documents, dim=1)
    together = model(packed, None, document_positions(packed, EOS))
    return together, torch.cat([model(tokens) for tokens in documents], dim=1)


parts_of_models = st.tuples(
    drawn_parts(HEAD_DIM, 2),
    st.sampled_from([{}, EXPERTS]),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
)


@settings(max_examples=25)
@given(
    drawn=parts_of_models,
    lengths=st.lists(st.integers(1, 14), min_size=2, max_size=3),
    seed=st.integers(0, 5),
)
def test_every_kind_of_attention_and_position(drawn, lengths, seed):
    parts, experts, n_kv_heads, breaks_ties = drawn
    parts["routing"]["tie_breaking"] = breaks_ties
    config = tiny_config(n_kv_heads=n_kv_heads, **experts, **parts)
    model = build(config, dtype=torch.float32)
    documents = [document(config, length, seed + i) for i, length in enumerate(lengths)]
    together, alone = packed_and_alone(model, documents)
    assert max_difference(together, alone) <= 1e-5


def test_without_positions_they_do_read_each_other():
    model = build(tiny_config(), std=0.2)
    documents = [document(model.config, length, length) for length in (7, 9)]
    _, alone = packed_and_alone(model, documents)
    assert max_difference(logits_of(model, torch.cat(documents, dim=1)), alone) > 1e-2


def test_scaled_frequencies_depend_on_the_documents_own_length():
    scaling = {"kind": "longrope", "factor": 2.0, "original_max_seq_len": 10}
    scaling |= {"short_factors": [1.0, 1.0], "long_factors": [9.0, 9.0]}
    model = build(tiny_config(rope={"scaling": scaling}), std=0.3)
    together, alone = packed_and_alone(model, [document(model.config, n, n) for n in (8, 11)])
    assert max_difference(together, alone) <= 1e-12


def test_equal_router_scores_are_ordered_as_in_the_document_alone():
    config = tiny_config(**EXPERTS, routing={"tie_breaking": True}, norm={"kind": "rmsnorm"})
    model = build(config)
    with torch.no_grad():
        for block in model.blocks:
            block.feed_forward.router.weight.zero_()
    together, alone = packed_and_alone(model, [document(config, n, n) for n in (5, 8)])
    assert max_difference(together, alone) <= 1e-12


def test_another_document_changes_no_bit():
    """Of a dense model: experts multiply other numbers of rows, which rounds otherwise."""
    model = build(tiny_config(), dtype=torch.float32)
    last = document(model.config, 9, 1)
    rows = [torch.cat([document(model.config, 7, seed), last], dim=1) for seed in (2, 3)]
    first, second = (model(row, None, document_positions(row, EOS))[:, 7:].detach() for row in rows)
    assert torch.equal(first, second)


@pytest.mark.parametrize("bf16", [False, True])
def test_losses_and_gradients_are_those_of_each_alone(bf16):
    """Training's own path, with blocks computed again, and in half precision by plain products."""
    model = build(tiny_config("llama", n_kv_heads=2), dtype=torch.float32).train()
    documents = [document(model.config, length, length) for length in (7, 9)]
    packed = torch.cat([*documents, torch.ones(1, 1, dtype=torch.long)], dim=1)
    parameters = list(model.parameters())

    def gradients(loss):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model.loss(packed, None, document_positions(packed, EOS))
        hidden = torch.cat([model.last_hidden_state(tokens) for tokens in documents], dim=1)
        scores = (hidden[0] @ model.head_weight.T).float()
        expected = torch.nn.functional.cross_entropy(scores, packed[0, 1:])
        found, wanted = gradients(loss), gradients(expected)
        model.recompute_blocks = True
        again = gradients(model.loss(packed, None, document_positions(packed, EOS)))
    tolerance = 3e-2 if bf16 else 1e-5
    assert max_difference(loss, expected) <= tolerance
    assert (found - wanted).norm() <= tolerance * wanted.norm()
    assert torch.equal(found, again)
    each = model.token_losses(packed, None, document_positions(packed, EOS))
    if not bf16:
        alone = losses_of(hidden[0].detach(), model.head_weight, packed[0, 1:])
        assert max_difference(each, alone) <= 1e-5


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("heads", "key_value_heads"), [(4, 4), (6, 2)])
def test_plain_products_agree_with_torchs_attention(heads, key_value_heads, window):
    tensors = inputs(heads, key_value_heads)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3], [0, 0, 1, 2, 3, 4, 5]])
    mask = DocumentMasks(positions, torch.float64).select(window).mask
    expected = causal_attention(*tensors, mask=mask)
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), tensors)
    actual = _MatmulAttention.apply(*tensors, None, None, mask)
    found = torch.autograd.grad((actual * weights).sum(), tensors)
    assert max_difference(actual, expected) <= 1e-14
    assert all(max_difference(f, w) <= 1e-13 for f, w in zip(found, wanted, strict=True))


def test_positions():
    tokens = torch.tensor([[5, 6, EOS, 7, 8, 9, EOS, EOS, 3], [EOS, 1, 2, 3, 4, 5, 6, 7, EOS]])
    positions = document_positions(tokens, EOS)
    assert positions.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0, 0], [0, 0, 1, 2, 3, 4, 5, 6, 7]]
    assert document_lengths(positions).tolist() == [[3] * 3 + [4] * 4 + [1] * 2, [1] + [8] * 8]


def test_one_token_that_ends_and_begins_documents():
    tokens = torch.tensor([[EOS, 5, EOS, EOS, 6, 7, EOS, EOS, 8]])
    assert document_positions(tokens, EOS, EOS).tolist() == [[0, 1, 2, 0, 1, 2, 3, 0, 1]]
    begun_by_another = torch.tensor([[5, EOS, 9, EOS, 6, 7, EOS, 9, EOS]])  # <9> <end> text <end>
    assert document_positions(begun_by_another, EOS, 9).tolist() == [[0, 1, 0, 1, 2, 3, 4, 0, 1]]


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:The .grad attribute of a Tensor"
)  # dynamo's own
def test_compiled_blocks_keep_documents_apart():
    model = build(tiny_config("llama", **EXPERTS), dtype=torch.float32).train()
    packed = torch.cat([document(model.config, length, length) for length in (7, 9)], dim=1)
    positions = document_positions(packed, EOS)
    results = []
    for compiled in (False, True):
        model.compile_blocks = compiled
        loss = model.loss(packed, [], positions)
        results.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    assert all(max_difference(a, b) <= 1e-5 for a, b in zip(*results, strict=True))
