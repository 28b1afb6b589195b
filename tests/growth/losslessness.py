"""What lossless means: every logit of the grown model is the old one's, to the tolerance of the precision."""

import torch

from tests.model.tiny_models import logits_of, max_difference, random_tokens

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}
NEAR_TIE = 1e-4


def before_near_ties(routings, shape):
    """(batch, time), the positions that no choice between two experts of nearly equal logits has reached.

    Rounding may turn such a choice, and then the outputs from that token on differ rightly.
    """
    near_tie = torch.zeros(shape, dtype=torch.bool)
    for routing in routings:
        near_tie |= (routing.selection_margin() <= NEAR_TIE).view(shape)
    return ~near_tie.cummax(dim=1).values


def assert_lossless(model, grown, tokens=None):
    """Same logits, absolutely, wherever the old model's choice of experts is clear."""
    tokens = random_tokens(model.config) if tokens is None else tokens
    routings = []
    with torch.no_grad():
        expected = model(tokens, routings)
    clear = before_near_ties(routings, tokens.shape)
    assert clear.float().mean() > 0.6, "most positions are compared"
    assert expected.abs().max() > 0.5, "logits of order one"
    precision = model.embedding.weight.dtype
    assert {tensor.dtype for tensor in grown.state_dict().values()} == {precision}

    actual = logits_of(grown, tokens)

    assert max_difference(actual[clear], expected[clear]) <= TOLERANCE[precision]
