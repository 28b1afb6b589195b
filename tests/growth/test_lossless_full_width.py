"""fp32 at a width and depth where noise larger than the entries would break losslessness."""

import pytest
import torch

from growlm.growth import Widen, grow
from growlm.model import ModelConfig, TransformerLM
from tests.growth.losslessness import assert_lossless
from tests.model.tiny_models import random_tokens


@pytest.mark.parametrize("scale_factor", [1.5, pytest.param(2, marks=pytest.mark.slow)])
def test_512_wide_12_layers_at_initialisation(scale_factor):
    config = ModelConfig(vocab_size=512)
    assert (config.d_model, config.n_layers) == (512, 12)
    model = TransformerLM(config).eval()

    grown = grow(model, [Widen(scale_factor=scale_factor, noise_std=0.02)])

    assert grown.embedding.weight.dtype == torch.float32
    assert_lossless(model, grown, random_tokens(config, batch=1, time=16))
