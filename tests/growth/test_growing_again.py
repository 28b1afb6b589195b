"""Once trained, filler channels are ordinary channels: growing over them is lossless too."""

from functools import cache
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from growlm.growth import Deepen, Widen, grow
from tests.growth.losslessness import TOLERANCE, assert_lossless
from tests.model.tiny_models import EXPERTS, FAMILIES, build, random_tokens, tiny_config

MODEL = pytest.mark.parametrize(
    ("family", "tied", "moe"), list(product(FAMILIES, (True, False), (False, True)))
)


@cache
def widened_and_trained(family, tied, moe):
    """A ×1.5 widened model after 20 AdamW steps on a toy: the next token is a function of the last."""
    experts = EXPERTS if moe else {}
    config = tiny_config(family, tie_embeddings=tied, **experts)
    model = grow(
        build(config, dtype=torch.float32), [Widen(scale_factor=1.5, new_channels="copies")]
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(20):
        start = random_tokens(config, batch=8, time=1, seed=step)
        tokens = (start + 5 * torch.arange(12)) % config.vocab_size
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0], "it learns"
    return model.eval()


def in_precision(model, dtype):
    copy = type(model)(model.config).to(dtype)
    copy.load_state_dict(model.state_dict())
    return copy.eval()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@MODEL
@pytest.mark.parametrize(
    "operators",
    [
        [Widen(scale_factor=1.5, new_channels="copies")],
        [Widen(scale_factor=2, new_channels="copies")],
        [
            Widen(scale_factor=2, new_channels="copies"),
            Deepen(extra_layers=2, placement="interleave", init="identity"),
        ],
        [Deepen(extra_layers=1, init="identity"), Widen(scale_factor=1.5, new_channels="copies")],
    ],
    ids=["x1.5", "x2", "x2 and deeper", "deeper and x1.5"],
)
def test_second_growth_of_a_trained_model(family, tied, moe, operators, dtype):
    model = in_precision(widened_and_trained(family, tied, moe), dtype)

    assert_lossless(model, grow(model, operators))


@MODEL
def test_training_moved_the_fillers(family, tied, moe):
    model = widened_and_trained(family, tied, moe)
    rows = model.embedding.weight.detach()
    untrained = rows[:, :16].mean(dim=1, keepdim=True) if family == "default" else 0.0

    assert (rows[:, 16:] - untrained).abs().max() > 1e-3
