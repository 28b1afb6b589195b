"""Cast a model's weights to another precision, for computing without autocast."""

from __future__ import annotations

import torch
from torch import nn

from growlm.model.layers.experts import MixtureOfExperts
from growlm.model.transformer import TransformerLM


def cast_weights(model: TransformerLM, dtype: torch.dtype) -> TransformerLM:
    """Cast the model's weights to `dtype`, in place, and return it; routers stay in at least fp32.

    Autocast would cast every matrix at every forward pass, for one token as for a thousand. A router in half
    precision would choose other experts.

    Args:
        model: Model for inference. Training in half precision would round small updates away.
        dtype: Dtype of all weights but the routers'.
    """
    wide = torch.promote_types(dtype, torch.float32)
    mixtures = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    routers = [mixture.router.weight.detach().to(wide) for mixture in mixtures]
    biases = [mixture.selection_bias for mixture in mixtures]
    model.to(dtype)
    for mixture, router, bias in zip(mixtures, routers, biases, strict=True):
        mixture.router.weight = nn.Parameter(router)
        mixture.selection_bias = None if bias is None else bias.to(wide)
    return model
