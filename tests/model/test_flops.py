"""The closed formula of floating-point operations against PyTorch's own counter."""

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from growlm.model import TransformerLM, parameter_report, training_flops_per_token
from tests.model.tiny_models import random_tokens, tiny_config


@pytest.mark.parametrize("family", ["default", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_training_flops_agree_with_the_counter(family, tied):
    config = tiny_config(family, d_model=64, d_ff=128, tie_embeddings=tied)
    tokens = random_tokens(config, batch=2, time=32)
    model = TransformerLM(config)

    # The unfused kernel: the counter knows its two matrix products, and not the fused one of the CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens).sum().backward()

    formula = training_flops_per_token(config, 32) * tokens.numel()
    assert formula == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_forward_flops_of_experts_count_the_chosen_ones():
    dense = parameter_report(tiny_config(bias=False))
    mixture = parameter_report(tiny_config(bias=False, num_experts=8, top_k=2))
    one_block = 2 * 2 * 16 * 24
    router = 2 * 8 * 16

    more = mixture.flops_per_token_forward - dense.flops_per_token_forward

    assert more == 2 * (one_block + router)


def test_attention_grows_with_the_sequence():
    config = tiny_config()
    short, long = (training_flops_per_token(config, time) for time in (10, 20))

    assert long - short == 3 * 2 * 2 * config.n_layers * config.n_heads * config.head_dim * 10
