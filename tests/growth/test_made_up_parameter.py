"""A new parameter needs a label and no other change; without a label growth refuses."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from growlm.growth import Deepen, Upcycle, Widen, grow
from growlm.growth.growth_map import derive_growth_map
from growlm.growth.model_protocol import axes_table_from_config
from growlm.model import TransformerLM
from growlm.model.axes import Label, index, label, reads, writes
from growlm.model.layers.labeled_layers import labeled_linear
from tests.model.tiny_models import build, logits_of, max_difference, random_tokens, tiny_config

GROWTHS = {
    "widen x2": [Widen(scale_factor=2)],
    "widen x1.5": [Widen(scale_factor=1.5)],
    "everything": [Upcycle(num_experts=3), Widen(scale_factor=1.5), Deepen(), Widen(d_ff=50)],
}


class WithStartBias(TransformerLM):
    """A learnt vector is added to every embedding: it writes the residual stream."""

    def _build(self, config):
        super()._build(config)
        self.start = nn.Parameter(torch.empty(config.d_model))
        label(self, start=Label((writes("residual"),)))
        self.embedding.register_forward_hook(lambda _, __, out: out + self.start)


class WithPositions(TransformerLM):
    """A learnt table of positions: indexed along an axis that no growth knows."""

    def _build(self, config):
        super()._build(config)
        self.positions = nn.Parameter(torch.empty(config.max_seq_len, config.d_model))
        label(self, positions=Label((index("position"), writes("residual"))))
        self.embedding.register_forward_hook(lambda _, __, x: x + self.positions[: x.shape[1]])


class WithSecondHead(TransformerLM):
    """A second matrix from the normalised residual stream to the vocabulary."""

    def _build(self, config):
        super()._build(config)
        self.second = labeled_linear(config, read="residual", write="vocabulary", bias=True)
        self.final_norm.register_forward_hook(self.keep)

    def keep(self, module, inputs, output):
        self.last = output

    def forward(self, tokens, routings=None):
        logits = super().forward(tokens, routings)
        return logits + F.gelu(self.second(self.last))


@pytest.mark.parametrize("family", ["default", "llama"])
@pytest.mark.parametrize("model_class", [WithStartBias, WithPositions, WithSecondHead])
@pytest.mark.parametrize("operators", GROWTHS.values(), ids=GROWTHS)
def test_labelled_parameter_grows_without_another_word(family, model_class, operators):
    config = tiny_config(family, tie_embeddings=False)
    model = build(config, std=0.2, model_class=model_class)
    tokens = random_tokens(config)
    expected = logits_of(model, tokens)
    ignoring_it = build(config, std=0.2)
    assert max_difference(logits_of(ignoring_it, tokens), expected) > 1e-3

    grown = grow(model, operators)

    assert type(grown) is model_class
    assert max_difference(logits_of(grown, tokens), expected) <= 1e-10


class Unlabelled(TransformerLM):
    """Its own parameter has no label."""

    def __init__(self, config, seed=0):
        super().__init__(config, seed)
        self.temperature = nn.Parameter(torch.ones(1))


class UnlabelledBuffer(TransformerLM):
    """A router with a buffer, as the loss-free balancing has one, and no label for it."""

    def __init__(self, config, seed=0):
        super().__init__(config, seed)
        for block in self.blocks:
            block.feed_forward.register_buffer("selection_bias", torch.zeros(4))


@pytest.mark.parametrize(
    ("model_class", "name"),
    [(Unlabelled, "temperature"), (UnlabelledBuffer, r"blocks\.0\.feed_forward\.selection_bias")],
)
def test_unlabelled_is_refused(model_class, name):
    model = model_class(tiny_config())

    with pytest.raises(ValueError, match=f"{name} has no axis label"):
        grow(model, [Widen(scale_factor=2)])


def test_unlabelled_on_one_instance_is_refused_too():
    """Its class builds models without it, so a growth that asks the class alone would drop it silently."""
    model = TransformerLM(tiny_config())
    model.blocks[0].feed_forward.register_buffer("selection_bias", torch.zeros(4))

    with pytest.raises(ValueError, match="selection_bias"):
        grow(model, [Widen(scale_factor=2)])


def test_source_and_target_of_different_axes_are_refused():
    config = tiny_config()
    old = dict(axes_table_from_config(config, TransformerLM))
    name = "blocks.0.feed_forward.up.weight"
    row = old[name]
    old[name] = type(row)(Label((writes("experts"), reads("residual"))), row.shape)

    with pytest.raises(ValueError, match="have different axes"):
        derive_growth_map(
            config, old, axes_table_from_config(config, TransformerLM), Deepen().change(config), 0
        )


def test_a_parameter_from_nowhere_is_refused():
    config = tiny_config()
    old = dict(axes_table_from_config(config, TransformerLM))
    del old["blocks.0.feed_forward.up.bias"]

    with pytest.raises(ValueError, match=r"blocks\.0\.feed_forward\.up\.bias has no source"):
        derive_growth_map(
            config, old, axes_table_from_config(config, TransformerLM), Deepen().change(config), 0
        )
