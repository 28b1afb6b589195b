"""Every grown tensor is what the growth map makes of the old one: nothing wrong passes, nothing right fails."""

import math
from collections import Counter
from dataclasses import replace

import attack_checks
import pytest
import torch

from growlm.growth import Deepen, GrowthRng, MultiplyExperts, Upcycle, Widen, build_growth_map, grow
from growlm.model import TransformerLM
from growlm.verification import (
    ModelComparison,
    Status,
    check_router_collapse,
    check_symmetry_breaking,
    check_weight_integrity,
    detailed_growth_check,
    quick_sanity_check,
    verify_functional_equivalence,
)
from growlm.verification.comparison import RoundingBounds, infer_growth_from_models
from tests.model.tiny_models import EXPERTS, build, logits_of, random_tokens, tiny_config

HALF = [torch.bfloat16, torch.float16]


def grown(operators, dtype=torch.float32, seed=0, std=0.05, family="default", **changes):
    """Old model, new model, map."""
    old = build(tiny_config(family, **changes), std=std, dtype=dtype)
    return old, grow(old, operators, seed), build_growth_map(old.config, operators)


def check(old, new, growth_map, **settings):
    return detailed_growth_check(
        old_model=old,
        new_model=new,
        probe=random_tokens(old.config, batch=4, time=24),
        device="cpu",
        growth_map=growth_map,
        **settings,
    )


def summaries(report):
    return {name: check.summary for name, check in report.checks.items() if not check}


def assert_all_found(count):
    attacks = list(attack_checks.attacks(count))
    outcomes = Counter(attack.outcome for attack in attacks)
    print(dict(outcomes))
    missed = [attack for attack in attacks if attack.outcome == "missed"]
    assert not missed, "\n".join(f"{a.kind} in {a.tensor} of {a.growth}" for a in missed)
    assert outcomes["found"] >= 0.85 * count
    assert outcomes["rounding"] <= 0.01 * count


def assert_none_fails(indices):
    failed = []
    statuses = Counter()
    for index in indices:
        kind, growth, report = attack_checks.right_growth(index)
        statuses.update(check.status for check in report.checks.values())
        failed += [(index, kind, summaries(report), str(growth))] if not report else []
    print(dict(statuses))
    assert not failed, failed


def test_every_corruption_is_found_but_what_is_free():
    assert_all_found(600)


@pytest.mark.slow
def test_many_corruptions_are_found():
    assert_all_found(4000)


@pytest.mark.parametrize("kind", range(len(attack_checks.HARD)), ids=attack_checks.HARD)
def test_no_right_growth_fails(kind):
    kinds = len(attack_checks.HARD)
    assert_none_fails(range(kind, 25 * kinds, kinds))


@pytest.mark.slow
def test_no_right_growth_of_many_fails():
    assert_none_fails(range(175, 3000))


BAD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("where", ["expert", "embedding", "router", "norm", "last"])
def test_what_is_not_finite_is_found_wherever_it_is(bad, where):
    operators = [Upcycle(8, 2), Widen(scale_factor=1.5, noise_std=0.02)]
    old, new, growth_map = grown(operators)
    probe = torch.zeros(1, 3, dtype=torch.long)  # reaches few experts, and one row of the embedding
    unused = (
        ModelComparison(old, new, probe, growth_map=growth_map)
        .new_trace.routings[0]
        .expert_load()
        .argmin()
    )
    block = new.blocks[0].feed_forward
    entry = {
        "expert": block.experts.down[unused],
        "embedding": new.embedding.weight[7:8],
        "router": block.router.weight,
        "norm": new.blocks[1].attention_norm.weight,
        "last": new.blocks[-1].attention.output.weight,
    }[where]
    with torch.no_grad():
        entry.view(-1)[-1] = bad
    report = detailed_growth_check(
        old_model=old, new_model=new, probe=probe, device="cpu", growth_map=growth_map
    )
    assert report.checks["weights"].status is Status.FAILED
    assert "NaN or infinity" in report.checks["weights"].summary
    assert not verify_functional_equivalence(old, new, probe, "cpu", growth_map=growth_map)
    assert not quick_sanity_check(new, probe, "cpu")


def test_a_nan_in_the_old_model_is_no_match():
    old, new, growth_map = grown([Widen(scale_factor=2, new_channels="copies")])
    for model in (old, new):
        with torch.no_grad():
            model.embedding.weight[7] = math.nan
    found = check_weight_integrity(old, new, growth_map=growth_map)
    assert found.status is Status.FAILED
    with torch.no_grad():
        new.embedding.weight[7] = 0.0
    assert "the old model's" in check_weight_integrity(old, new, growth_map=growth_map).summary


def test_a_nan_gradient_of_twins_fails_the_symmetry_check():
    old, new, growth_map = grown([Widen(scale_factor=2, noise_std=0.02)])
    new.blocks[0].attention.query.weight.register_hook(lambda gradient: gradient * math.nan)
    comparison = ModelComparison(old, new, random_tokens(old.config), growth_map=growth_map)
    report = check_symmetry_breaking(old, new, comparison.probe, growth_map=growth_map)
    assert report.status is Status.FAILED
    assert "not finite" in report.summary


def test_a_nan_fails_the_router_check_also_in_the_first_of_several_routers():
    old, new, growth_map = grown([Widen(scale_factor=2, new_channels="copies")], **EXPERTS)
    probe = random_tokens(old.config)
    comparison = ModelComparison(old, new, probe, growth_map=growth_map)
    from growlm.verification.router import report_router_scaling

    assert report_router_scaling(comparison).status is Status.PASSED
    comparison.new_trace.routings[0].logits[0, 0] = math.nan
    comparison.__dict__["is_finite"] = True  # each place by itself
    assert report_router_scaling(comparison).status is Status.FAILED


def test_a_nan_at_a_position_that_a_near_tie_excuses_still_fails():
    old, new, growth_map = grown([Widen(scale_factor=2, new_channels="copies")], **EXPERTS)
    comparison = ModelComparison(old, new, random_tokens(old.config), growth_map=growth_map)
    comparison.routing_changes.affected_positions[-1].fill_(True)
    comparison.new_trace.logits[0, 0, 0] = math.nan
    del comparison.__dict__["is_finite"]
    assert comparison.max_logit_difference == math.inf


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("family", ["default", "llama"])
@pytest.mark.parametrize(
    "widen",
    [
        Widen(scale_factor=1.5, new_channels="copies"),
        Widen(scale_factor=3, new_channels="copies"),
        Widen(scale_factor=7, new_channels="copies"),
        Widen(scale_factor=2, new_channels="fresh"),
    ],
    ids=["x1.5", "x3", "x7", "x2 fresh"],
)
def test_gains_near_one_in_half_precision_are_no_fault(widen, family, dtype):
    """They were compared in units of their deviation, which is tiny."""
    old, new, growth_map = grown([widen], dtype, family=family, std=0.002)
    for norm in (old.final_norm, old.blocks[0].attention_norm):
        assert norm.weight.float().std() < 0.01
    report = check(old, new, growth_map)
    assert report, summaries(report)
    with torch.no_grad():
        new.final_norm.weight[0] *= 1.06
    report = check(old, new, growth_map)
    assert report.checks["weights"].status is Status.FAILED
    assert "final_norm.weight" in report.checks["weights"].summary


@pytest.mark.parametrize("router", ["equal", "pairs"])
@pytest.mark.parametrize("tie_breaking", [True, False])
def test_ties_between_experts_that_are_equal_lose_nothing(router, tie_breaking):
    old = build(tiny_config(), std=0.3, dtype=torch.float32)
    init = Upcycle(4, router_init="zeros", break_ties=tie_breaking)
    old = grow(old, [init])
    if router == "pairs":
        with torch.no_grad():
            for block in old.blocks:
                block.feed_forward.router.weight.normal_()[1::2] = block.feed_forward.router.weight[
                    ::2
                ]
    operators = [MultiplyExperts(2, noise_std=0.0)]
    report = check(old, grow(old, operators), build_growth_map(old.config, operators))
    assert report, summaries(report)
    assert report.checks["router"].status is Status.PASSED


def test_large_weights_with_large_noise_are_rounded_more():
    config = tiny_config(d_model=64, head_dim=16, d_ff=256, n_layers=4)
    old = build(config, std=0.2, dtype=torch.float32)
    with torch.no_grad():
        for parameter in old.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    operators = [Widen(scale_factor=2, noise_std=1.0)]
    growth_map = build_growth_map(config, operators)
    new = grow(old, operators)
    report = check(old, new, growth_map)
    usual = 1e-4 * max(1.0, float(logits_of(old, random_tokens(config, 4, 24)).abs().max()))
    assert usual < report.max_logit_difference <= report.tolerance <= 50 * usual
    assert report, summaries(report)
    assert "the measured rounding" in report.checks["functional"].summary
    with torch.no_grad():
        new.blocks[0].attention.output.weight[:, 0] *= 1.01
    assert not check(old, new, growth_map)


def test_a_comparison_that_tells_little_says_so():
    old = build(tiny_config(n_layers=4), std=0.3, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in old.parameters():
            if parameter.ndim > 1:
                parameter.mul_(100)
    operators = [Widen(scale_factor=2)]
    report = check(old, grow(old, operators), build_growth_map(old.config, operators))
    assert report.checks["functional"].status is Status.FINDING
    assert "comparison is inconclusive" in report.checks["functional"].summary
    assert report.checks["weights"].status is Status.PASSED


def test_large_router_logits_have_larger_near_ties():
    old, new, growth_map = grown(
        [Widen(scale_factor=2, new_channels="copies")], torch.float64, **EXPERTS
    )
    comparison = ModelComparison(old, new, random_tokens(old.config), growth_map=growth_map)
    routing = comparison.old_trace.routings[0]
    large = replace(routing, logits=routing.logits * 1e4)
    plain = comparison.near_tie_margin(0, routing, None)
    assert comparison.near_tie_margin(0, large, None) == pytest.approx(
        1e-4 * max(1.0, float(large.logits.abs().max()))
    )
    assert plain == pytest.approx(1e-4 * max(1.0, float(routing.logits.abs().max())))
    measured = RoundingBounds(streams=[0.0, 0.0], routers={0: 0.5, 1: 0.0}, logits=0.0)
    assert comparison.near_tie_margin(0, routing, measured) == 1.0  # two logits, each off by a half
    assert comparison.near_tie_margin(1, routing, measured) == plain


def test_half_precision_is_checked_without_being_told():
    old, new, growth_map = grown(
        [Widen(scale_factor=1.5, noise_std=0.02)], torch.bfloat16, **EXPERTS
    )
    report = check(old, new, growth_map)
    assert report, summaries(report)
    assert next(new.parameters()).dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("blocks.0.attention.query.weight", 1e-4, "differs from its source"),
        ("embedding.weight", 1e-6, "copies differ"),
        ("blocks.2.attention.output.weight", 1e-30, "not zero"),
        ("blocks.2.feed_forward.down.bias", 1e-30, "not zero"),
        ("blocks.1.feed_forward_norm.weight", 1e-4, "copies differ"),
        ("final_norm.bias", 1e-4, "copies differ"),
    ],
)
def test_the_smallest_change_that_is_no_rounding_is_named(name, change, what):
    operators = [Widen(scale_factor=2, noise_std=0.02), Deepen(1, init="identity")]
    old, new, growth_map = grown(operators, tie_embeddings=False)
    assert check_weight_integrity(old, new, growth_map=growth_map)
    with torch.no_grad():
        new.get_parameter(name).view(-1)[0] += change
    report = check_weight_integrity(old, new, growth_map=growth_map)
    assert report.status is Status.FAILED
    assert name in report.summary
    assert what in report.summary
    assert report.figures["faults"][0]["tensor"] == name


@pytest.mark.parametrize("factor", [1.5, 2, 3])
def test_what_is_filled_must_be_as_it_is_filled(factor):
    old, new, growth_map = grown([Widen(scale_factor=factor, new_channels="fresh")])
    start = old.config.d_model
    for parameter, entry in (
        (new.embedding.weight, (3, start)),
        (new.final_norm.weight, (start,)),
        (new.final_norm.bias, (start,)),
        (new.blocks[0].feed_forward.down.weight, (0, old.config.d_ff)),
        (new.blocks[0].feed_forward.down.weight, (start, 0)),
        (new.blocks[1].attention.output.weight, (0, start)),
    ):
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter[entry] += 1e-3
        assert not check_weight_integrity(old, new, growth_map=growth_map)
        with torch.no_grad():
            parameter.copy_(before)
    assert check_weight_integrity(old, new, growth_map=growth_map)


def test_drawn_entries_are_free_within_their_range():
    operators = [
        Upcycle(4),
        Widen(scale_factor=1.5, new_channels="copies"),
        Deepen(1, init="fresh"),
    ]
    old, new, growth_map = grown(operators)
    draws = GrowthRng(0)
    for name in ("blocks.0.feed_forward.router.weight", "blocks.2.attention.query.weight"):
        tensor_map, parameter = growth_map.tensors[name], new.get_parameter(name)
        shape = growth_map.old_shapes.get(tensor_map.source, ())
        assert tensor_map.unconstrained_entries(shape, draws).all()
        with torch.no_grad():
            parameter.mul_(-1)
            assert check_weight_integrity(old, new, growth_map=growth_map)
            parameter[0, 0] = 1e3
            assert "out of range" in check_weight_integrity(old, new, growth_map=growth_map).summary
            parameter[0, 0] = 0.0


def test_free_entries_are_those_that_another_seed_changes():
    operators = [
        Upcycle(4, drop_fraction=0.5),
        Widen(scale_factor=1.5, noise_std=0.0),
        Deepen(1, init="fresh"),
    ]
    old, new, growth_map = grown(operators)
    others = [grow(old, operators, seed) for seed in (1, 2)]
    for name, tensor in new.state_dict().items():
        tensor_map = growth_map.tensors[name]
        if "experts" in name:
            continue  # another seed draws other units
        shape = growth_map.old_shapes.get(tensor_map.source, ())
        free = tensor_map.unconstrained_entries(shape, GrowthRng(0))
        changed = torch.stack([other.state_dict()[name] != tensor for other in others]).any(dim=0)
        assert torch.equal(changed, free), name


def test_units_drawn_anew_are_the_same_in_all_matrices_and_no_more():
    operators = [Upcycle(4, drop_fraction=0.5)]
    old, new, growth_map = grown(operators)
    assert check_weight_integrity(old, new, growth_map=growth_map)
    experts = new.blocks[0].feed_forward.experts
    up, down = (old.blocks[0].feed_forward.get_parameter(f"{n}.weight") for n in ("up", "down"))
    kept = int((experts.up[2] == up).all(dim=1).nonzero()[0])
    assert torch.equal(experts.down[2][:, kept], down[:, kept])
    for parameter in (experts.up[2][kept], experts.down[2][:, kept]):
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter[0] += 1e-3
        assert not check_weight_integrity(old, new, growth_map=growth_map)
        with torch.no_grad():
            parameter.copy_(before)


def test_a_model_of_other_tensors_fails():
    old, new, growth_map = grown([Widen(scale_factor=2, new_channels="copies")])
    smaller = TransformerLM(replace(new.config, d_ff=40))
    report = check_weight_integrity(old, smaller, growth_map=growth_map)
    assert report.status is Status.FAILED
    assert any("expected (48, 32)" in fault["what"] for fault in report.figures["faults"])


def test_weights_brought_to_half_precision_after_the_growth_pass():
    old, new, growth_map = grown([Widen(scale_factor=3, noise_std=0.02)])
    half = new.to(torch.bfloat16).float()
    assert not check_weight_integrity(old, half, growth_map=growth_map)
    assert check_weight_integrity(old, half, growth_map=growth_map, growth_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "operators",
    [
        [Widen(scale_factor=1.5, new_channels="fresh")],
        [Widen(scale_factor=2, split="1:2", noise_std=0.0)],
        [Deepen(2, "stack", "fresh")],
        [Deepen(2, "interleave", "copy")],
        [
            Upcycle(4, router_std=0.5),
            Widen(scale_factor=2, new_channels="fresh"),
            Deepen(1, init="identity"),
        ],
    ],
)
def test_settings_that_no_record_names_are_inferred_from_the_weights(operators):
    old, new, growth_map = grown(operators)
    assert check_weight_integrity(old, new)
    inferred = infer_growth_from_models(old, new)
    assert inferred.lossless == growth_map.lossless
    with torch.no_grad():
        new.blocks[-1].attention.key.weight[0, 0] += 100.0
    assert not check_weight_integrity(old, new)


def test_fp16_weights_of_large_norm_grow_finite():
    """The square of their norm is beyond the precision's range."""
    old = build(tiny_config(), std=1.0, dtype=torch.float16)
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.mul_(50)
    new = grow(old, [Widen(scale_factor=1.5, new_channels="copies")])
    assert all(parameter.isfinite().all() for parameter in new.parameters())


def test_a_leak_is_found_in_a_model_of_small_logits(monkeypatch):
    model = build(tiny_config(), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.final_norm.parameters():
            parameter.mul_(1e-5)
    probe = random_tokens(model.config)
    assert quick_sanity_check(model, probe, "cpu")
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "torch.nn.functional.scaled_dot_product_attention",
        lambda *args, is_causal, **kwargs: attend(*args, is_causal=False, **kwargs),
    )
    problems = quick_sanity_check(model, probe, "cpu").problems
    assert any("later token" in problem for problem in problems)


def test_the_router_lock_check_fails_at_a_nan():
    model = build(tiny_config(**EXPERTS), dtype=torch.float32)
    probe = random_tokens(model.config)
    assert check_router_collapse(model, probe)
    with torch.no_grad():
        model.blocks[0].feed_forward.experts.up[3, 0, 0] = math.nan
    assert check_router_collapse(model, probe).status is Status.FAILED


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_means_that_are_rounded_otherwise_in_every_copy_are_right(dtype, seed):
    """They are taken after the columns have been copied, and summed in another order for each."""
    old = build(tiny_config(d_model=40, n_heads=4, head_dim=10), seed, dtype=dtype)
    operators = [Widen(scale_factor=1.5, noise_std=0.0)]
    growth_map = build_growth_map(old.config, operators)
    report = check_weight_integrity(old, grow(old, operators), growth_map=growth_map)
    assert report, report.summary


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_units_that_cannot_be_told_in_one_matrix_are_told_in_the_next(dtype):
    """Those of a constant matrix are drawn with a deviation of zero: they stay as they were."""
    old = build(tiny_config(), dtype=dtype)
    with torch.no_grad():
        for block in old.blocks:
            block.feed_forward.up.weight.fill_(0.02)
    operators = [Upcycle(4, drop_fraction=0.5)]
    growth_map = build_growth_map(old.config, operators)
    new = grow(old, operators)
    report = check_weight_integrity(old, new, growth_map=growth_map)
    assert report, report.summary
    with torch.no_grad():
        new.blocks[1].feed_forward.experts.down[0] *= 2
    assert not check_weight_integrity(old, new, growth_map=growth_map)
