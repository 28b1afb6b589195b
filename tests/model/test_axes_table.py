"""Every parameter and persistent buffer says what its dimensions mean; none is guessed."""

import pytest
import torch
from torch import nn

from growlm.model import TransformerLM
from growlm.model.axes import Label, axes_table, label, reads, split_block_name, writes
from tests.model.tiny_models import EXPERTS, tiny_config


@pytest.mark.parametrize("family", ["default", "llama"])
@pytest.mark.parametrize("experts", [{}, EXPERTS])
@pytest.mark.parametrize("tied", [True, False])
def test_labelled_sizes_are_those_of_the_config(family, experts, tied):
    config = tiny_config(family, n_kv_heads=2, tie_embeddings=tied, **experts)
    model = TransformerLM(config)
    sizes = config.axis_sizes()

    table = axes_table(model)

    assert set(table) == set(model.state_dict())
    for row in table.values():
        assert row.shape == tuple(sizes[dim.axis] for dim in row.label.dims)


def test_unlabelled_parameter_is_an_error():
    model = TransformerLM(tiny_config())
    model.blocks[1].attention.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(ValueError, match=r"blocks\.1\.attention\.scale has no axis label"):
        axes_table(model)


def test_unlabelled_persistent_buffer_is_an_error():
    model = TransformerLM(tiny_config(**EXPERTS))
    model.blocks[0].feed_forward.router.register_buffer("selection_bias", torch.zeros(4))

    with pytest.raises(ValueError, match=r"router\.selection_bias has no axis label"):
        axes_table(model)


def test_buffer_that_no_checkpoint_holds_needs_no_label():
    model = TransformerLM(tiny_config())
    model.register_buffer("scratch", torch.zeros(4), persistent=False)

    assert "scratch" not in axes_table(model)


def test_label_of_another_number_of_dimensions_is_an_error():
    layer = nn.Linear(3, 4, bias=False)
    label(layer, weight=Label((writes("hidden"),)))

    with pytest.raises(ValueError, match="weight has 2 dimensions, but its label has 1"):
        axes_table(layer)


def test_labels_declared_one_after_the_other_add_up():
    layer = nn.Linear(3, 4)
    label(layer, weight=Label((writes("hidden"), reads("residual"))))
    label(layer, bias=Label((writes("hidden"),)))

    assert set(axes_table(layer)) == {"weight", "bias"}


def test_block_names_split():
    assert split_block_name("blocks.13.attention.key.bias") == (13, "attention.key.bias")
    assert split_block_name("embedding.weight") == (None, "embedding.weight")
