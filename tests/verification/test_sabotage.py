"""Each check fails when the growth is broken in the way it guards against."""

from dataclasses import replace

import pytest
import torch

from growlm.growth import Deepen, Upcycle, Widen, build_growth_map, grow
from growlm.model import TransformerLM
from growlm.model.axes import Role, axes_table
from growlm.verification import Status, detailed_growth_check
from tests.model.tiny_models import EXPERTS, build, random_tokens, tiny_config

DTYPES = [torch.float32, torch.float64]


def check(old, new, operators=None, **settings):
    growth_map = build_growth_map(old.config, operators) if operators else None
    return detailed_growth_check(
        old_model=old,
        new_model=new,
        probe=random_tokens(old.config, batch=4, time=24),
        device="cpu",
        growth_map=growth_map,
        **settings,
    )


def widened(dtype, family="default", factor=2, noise_std=0.02):
    old = build(tiny_config(family, **EXPERTS), dtype=dtype)
    return old, grow(old, [Widen(scale_factor=factor, noise_std=noise_std)])


def parameters_reading(model, axis):
    table = axes_table(model)
    return [p for n, p in model.named_parameters() if table[n].label.has(Role.READS, axis)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["default", "llama"])
@pytest.mark.parametrize("factor", [1.5, 2, 3])
def test_an_honest_growth_passes(dtype, family, factor):
    report = check(*widened(dtype, family, factor), scale_factor=factor)
    assert report
    assert {check.status for check in report.checks.values()} == {Status.PASSED}
    assert abs(report.jump) <= 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_unscaled_router_fails_the_router_check(dtype):
    old, new = widened(dtype)
    with torch.no_grad():
        for block in new.blocks:
            block.feed_forward.router.weight.mul_(2)
    report = check(old, new)
    assert report.checks["router"].status is Status.FAILED
    assert "not divided" in report.checks["router"].summary
    assert not report


def test_changed_head_dim_fails_the_rope_check():
    old = build(tiny_config(), dtype=torch.float32)
    new = TransformerLM(replace(old.config, d_model=32, head_dim=8, d_ff=48))
    report = check(old, new)
    assert report.checks["rope"].status is Status.FAILED
    assert "head_dim changed from 4 to 8" in report.checks["rope"].summary


def test_strayed_query_heads_fail_the_rope_check():
    old = build(tiny_config(n_kv_heads=2), dtype=torch.float32)
    operators = [Widen(scale_factor=2, new_channels="copies")]
    growth_map = build_growth_map(old.config, operators)
    source = growth_map.axes["query_heads"].source.flip(0)
    growth_map.axes["query_heads"] = replace(growth_map.axes["query_heads"], source=source)
    report = detailed_growth_check(
        old_model=old,
        new_model=grow(old, operators),
        probe=random_tokens(old.config),
        device="cpu",
        growth_map=growth_map,
    )
    assert report.checks["rope"].status is Status.FAILED


def test_another_scale_factor_than_expected_fails_the_rope_check():
    report = check(*widened(torch.float32, factor=2), scale_factor=3)
    assert report.checks["rope"].status is Status.FAILED


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", ["residual", "query_heads", "hidden"])
def test_one_undivided_column_fails_the_functional_check(dtype, axis):
    old, new = widened(dtype)
    parameter = next(p for p in parameters_reading(new, axis) if p.abs().max() > 0)
    with torch.no_grad():
        parameter[..., 0] *= 2
    functional = check(old, new).checks["functional"]
    assert functional.status is Status.FAILED
    assert "layer 0" in functional.summary


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("noise_std", [1e-4, 1e-2])
def test_row_paired_noise_fails_the_symmetry_check(dtype, noise_std):
    old, new = widened(dtype, noise_std=0.0)
    with torch.no_grad():
        for parameter in parameters_reading(new, "residual"):
            half = parameter.shape[-2] // 2
            noise = noise_std * torch.randn(*parameter.shape[:-2], half, parameter.shape[-1]).to(
                dtype
            )
            parameter[..., :half, :] += noise
            parameter[..., half : 2 * half, :] -= noise
    symmetry = check(old, new).checks["symmetry"]
    assert symmetry.status is Status.FAILED
    assert "do not add up" in symmetry.summary


def test_embeddings_that_are_off_fail_the_functional_check():
    old, new = widened(torch.float32)
    with torch.no_grad():
        new.embedding.weight[:, 3] += 1e-3
    functional = check(old, new).checks["functional"]
    assert functional.status is Status.FAILED
    assert "embeddings" in functional.summary


def test_a_nan_fails():
    old, new = widened(torch.float32)
    with torch.no_grad():
        new.final_norm.weight[0] = float("nan")
    report = check(old, new)
    assert report.checks["functional"].status is Status.FAILED
    assert not report


@pytest.mark.parametrize("dtype", DTYPES)
def test_twins_left_equal_are_a_finding_and_fail_where_required(dtype):
    old, new = widened(dtype, noise_std=0.0)
    report = check(old, new)
    assert report.checks["symmetry"].status is Status.FINDING
    assert "noise_std" in report.checks["symmetry"].summary
    assert report
    required = check(old, new, require_symmetry_breaking=True)
    assert required.checks["symmetry"].status is Status.FAILED
    assert not required


def test_copied_blocks_are_reported_as_not_lossless():
    old = build(tiny_config(), dtype=torch.float32)
    operators = [Deepen(extra_layers=1, init="copy")]
    report = check(old, grow(old, operators), operators)
    assert not report.lossless
    assert report.checks["functional"].status is Status.FINDING
    assert report


def test_an_identity_block_that_is_none_fails():
    old = build(tiny_config(), dtype=torch.float32)
    new = grow(old, [Deepen(extra_layers=1, init="identity")])
    with torch.no_grad():
        new.blocks[2].attention.output.bias[0] = 0.1
    assert check(old, new).checks["functional"].status is Status.FAILED


@pytest.mark.parametrize("factor", [1.5, 2])
def test_operators_in_any_order_pass(factor):
    old = build(tiny_config(), dtype=torch.float32)
    widen, upcycle, deepen = (
        Widen(scale_factor=factor, new_channels="copies"),
        Upcycle(num_experts=4),
        Deepen(extra_layers=1, init="identity"),
    )
    for operators in ([widen, upcycle], [deepen, widen, upcycle], [widen, upcycle, widen]):
        report = check(old, grow(old, operators), operators)
        assert report, [c.summary for c in report.checks.values()]


def test_models_that_no_growth_joins_are_refused():
    old = build(tiny_config(**EXPERTS), dtype=torch.float32)
    for changes in ({"num_experts": 6, "top_k": 2}, {**EXPERTS, "n_kv_heads": 2}):
        with pytest.raises(ValueError, match="no known growth"):
            check(old, build(tiny_config(**changes), dtype=torch.float32))


def test_upcycling_breaks_symmetry_by_its_router():
    old = build(tiny_config(), dtype=torch.float32)
    report = check(old, grow(old, [Upcycle(num_experts=4)]))
    assert report.checks["symmetry"].status is Status.PASSED
    assert report.checks["router"].status is Status.NOT_APPLICABLE


def test_experts_behind_a_constant_router_are_found_equal():
    old = build(tiny_config(), dtype=torch.float32)
    operators = [Upcycle(num_experts=4, top_k=4, router_init="zeros", break_ties=False)]
    report = check(old, grow(old, operators), operators)
    assert report.checks["symmetry"].status is Status.FINDING
