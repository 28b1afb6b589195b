"""The published sizes, to the last parameter."""

import pytest

from growlm.model import ModelConfig, TransformerLM, parameter_report
from growlm.model.config import replace_fields
from tests.model.tiny_models import EXPERTS, tiny_config

EIGHT_EXPERTS = {"num_experts": 8, "top_k": 2}


def default_family(d_model, n_layers, n_heads, **experts):
    return ModelConfig(
        vocab_size=50257,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=d_model // n_heads,
        d_ff=4 * d_model,
        **experts,
    )


@pytest.mark.parametrize(
    ("config", "total", "active"),
    [
        (default_family(832, 7, 8), 100_038_016, 100_038_016),
        (default_family(832, 7, 8, **EIGHT_EXPERTS), 371_640_256, 138_878_272),
        (default_family(1664, 11, 16, **EIGHT_EXPERTS), 2_155_790_208, 693_264_000),
        (default_family(512, 12, 8), 63_561_216, 63_561_216),
        (default_family(512, 12, 8, **EIGHT_EXPERTS), 239_986_176, 88_806_912),
        (default_family(1024, 12, 16, **EIGHT_EXPERTS), 907_791_360, 303_442_944),
        (default_family(1024, 15, 16, **EIGHT_EXPERTS), 1_121_872_896, 366_437_376),
    ],
)
def test_published_sizes_are_exact(config, total, active):
    report = parameter_report(config)

    assert (report.total, report.active) == (total, active)


def test_a_shared_norm_and_a_bias_of_the_head_count():
    usual = tiny_config(norm={"parallel_residual": True})
    both = replace_fields(usual, {"norm.shared": True, "embedding.head_bias": True})
    counts = [parameter_report(config) for config in (usual, both)]

    norms = 2 * usual.d_model * usual.n_layers
    assert counts[1].total == counts[0].total - norms + usual.vocab_size
    assert counts[1].flops_per_token_forward == counts[0].flops_per_token_forward


def test_published_idle_experts_and_efficiency():
    report = parameter_report(default_family(832, 7, 8, **EIGHT_EXPERTS))

    assert report.inactive == 371_640_256 - 138_878_272
    assert report.idle_experts == 42
    assert round(100 * report.efficiency, 1) == 37.4


@pytest.mark.parametrize("family", ["default", "llama"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("experts", [{}, EXPERTS])
def test_report_counts_what_the_live_model_holds(family, tied, experts):
    config = tiny_config(family, tie_embeddings=tied, n_kv_heads=2, **experts)
    model = TransformerLM(config)

    held = sum(parameter.numel() for parameter in model.parameters())

    assert parameter_report(model).total == parameter_report(config).total == held


def test_active_leaves_out_the_experts_not_chosen():
    config = tiny_config("llama", **EXPERTS)
    one_expert = 3 * config.d_model * config.d_ff

    report = parameter_report(config)

    assert report.inactive == config.n_layers * 2 * one_expert
    assert report.idle_experts == config.n_layers * 2


def test_dense_model_is_all_active():
    report = parameter_report(tiny_config())

    assert (report.inactive, report.idle_experts, report.efficiency) == (0, 0, 1.0)
