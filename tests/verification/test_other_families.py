"""The checks on growths of models with the parts of Gemma, OLMo 2, Qwen2-MoE and GPT-2."""

import pytest
import torch

from growlm.growth import Deepen, Widen, grow
from growlm.model import ModelConfig
from growlm.verification import check_functional_identity_layerwise
from growlm.verification.weights import check_weight_integrity
from tests.model.tiny_models import build, random_tokens

SIZES = {"vocab_size": 31, "d_model": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}
SIZES |= {"head_dim": 4, "d_ff": 24, "max_seq_len": 16}
FAMILIES = {
    "Gemma": {
        "norm": {"kind": "rmsnorm", "gain_offset": 1.0, "placement": "both"},
        "embedding": {"scale_by_width": True},
    },
    "OLMo 2": {
        "attention": {"qk_norm": "full"},
        "norm": {"kind": "rmsnorm", "placement": "post"},
    },
    "Qwen2-MoE": {
        "num_experts": 4,
        "shared_d_ff": 16,
        "routing": {"renormalize": False, "shared_gate": True},
    },
    "dense blocks and mixtures": {
        "num_experts": 4,
        "expert_d_ff": 16,
        "layers": {"mixture": [False, True]},
    },
    "GPT-2": {"embedding": {"positions": "learned"}},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_growth_that_is_not_known_is_found_and_passes(family):
    model = build(ModelConfig(**SIZES, **FAMILIES[family]), std=0.1, dtype=torch.float32)
    grown = grow(
        model, [Widen(scale_factor=2, noise_std=1e-3), Deepen(extra_layers=1, init="identity")]
    )
    probe = random_tokens(model.config, batch=2, time=12)
    functional = check_functional_identity_layerwise(model, grown, probe)
    assert functional.status.value == "passed", functional.summary
    integrity = check_weight_integrity(model, grown)
    assert integrity.status.value == "passed", integrity.summary

    with torch.no_grad():
        next(grown.parameters())[3, 5] += 0.3
    broken = check_weight_integrity(model, grown)
    assert broken.status.value == "failed", broken.summary
