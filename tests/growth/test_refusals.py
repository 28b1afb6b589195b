"""What cannot be grown is refused with the setting, its value and what would be allowed."""

import re
from dataclasses import replace

import pytest

from growlm.growth import Deepen, Upcycle, Widen, build_growth_map, grow
from growlm.model import TransformerLM
from growlm.runtime.errors import UserError
from tests.model.tiny_models import EXPERTS, tiny_config


def refusal_of(operator, **changes):
    with pytest.raises(UserError) as refusal:
        build_growth_map(tiny_config(**changes), [operator])
    return refusal.value


def test_fractional_heads_name_the_factors_that_work():
    error = refusal_of(Widen(scale_factor=1.3), d_model=40, n_heads=8, n_kv_heads=8)

    assert (error.key, error.value) == ("scale_factor", 1.3)
    assert "n_heads=8 times 1.3 is 10.4" in error.reason
    assert "1.25 and 1.375 work" in error.reason


@pytest.mark.parametrize(
    ("factor", "sizes"),
    [
        (1.3, {"d_model": 40, "n_heads": 8, "n_kv_heads": 8}),
        (1.5, {"d_model": 36, "n_heads": 9, "n_kv_heads": 3}),
        (1.55556, {"d_model": 36, "n_heads": 9, "n_kv_heads": 3}),
        (4 / 3 + 1e-4, {"d_model": 36, "n_heads": 9, "n_kv_heads": 3}),
        (2.25, {"d_model": 16, "n_heads": 4, "n_kv_heads": 2}),
        (1.01, {"d_model": 14, "n_heads": 7, "n_kv_heads": 1}),
    ],
)
@pytest.mark.parametrize("kind", ["copies", "fresh"])
def test_the_factors_named_do_work(factor, sizes, kind):
    widen = Widen(scale_factor=factor, new_channels=kind)
    reason = refusal_of(widen, **sizes, head_dim=4).reason
    named = re.search(r"nearby, ([0-9.]+)(?: and ([0-9.]+))? works?$", reason)

    assert named, reason
    for near in filter(None, named.groups()):
        grown = build_growth_map(
            tiny_config(**sizes, head_dim=4), [replace(widen, scale_factor=float(near))]
        )
        assert grown.new_config.d_model == pytest.approx(sizes["d_model"] * float(near))


def test_fractional_width_is_refused():
    error = refusal_of(Widen(scale_factor=1.25), d_model=18)

    assert (error.key, error.value) == ("scale_factor", 1.25)
    assert "d_model=18 times 1.25 is 22.5" in error.reason


def test_groups_that_do_not_fit_name_both_conditions():
    error = refusal_of(Widen(scale_factor=2.25), n_heads=4, n_kv_heads=2)

    assert (error.key, error.value) == ("scale_factor", 2.25)
    assert "9 query heads" in error.reason
    assert "2 key/value heads" in error.reason
    assert "multiple of 2 (the query heads per key/value head)" in error.reason
    assert "multiple of 2 (the key/value heads)" in error.reason


def test_the_heads_that_were_asked_for_by_name_are_named():
    error = refusal_of(Widen(n_heads=9), n_heads=4, n_kv_heads=2)

    assert (error.key, error.value) == ("n_heads", 9)


@pytest.mark.parametrize("n_kv_heads", [1, 4])
def test_the_same_factor_is_fine_on_one_or_all_heads(n_kv_heads):
    config = tiny_config(n_heads=4, n_kv_heads=n_kv_heads)

    assert build_growth_map(config, [Widen(scale_factor=2.25)]).new_config.n_heads == 9


@pytest.mark.parametrize(("width", "value"), [("d_model", 12), ("n_heads", 2), ("d_ff", 16)])
def test_shrinking_is_refused(width, value):
    error = refusal_of(Widen(**{width: value}))

    assert (error.key, error.value) == (width, value)
    assert "at least" in error.reason


@pytest.mark.parametrize("widen", [Widen(), Widen(scale_factor=1.0), Widen(d_model=16, d_ff=24)])
def test_growing_nothing_is_refused(widen):
    error = refusal_of(widen)

    assert (error.key, error.value) == ("scale_factor", widen.scale_factor)
    assert "nothing would grow" in error.reason


def test_a_mixture_cannot_be_upcycled():
    error = refusal_of(Upcycle(num_experts=8), **EXPERTS)

    assert (error.key, error.value) == ("num_experts", 8)
    assert "4 experts already" in error.reason


def test_a_single_chosen_expert_is_refused_with_the_reason():
    error = refusal_of(Upcycle(top_k=1))

    assert (error.key, error.value) == ("top_k", 1)
    assert "router gets no gradient" in error.reason


def test_more_chosen_than_there_are():
    error = refusal_of(Upcycle(num_experts=8, top_k=9))

    assert (error.key, error.value) == ("top_k", 9)
    assert "at most num_experts=8" in error.reason


@pytest.mark.parametrize(
    ("operator", "key", "value"),
    [
        (Widen(scale_factor=0.5), "scale_factor", 0.5),
        (Widen(scale_factor=2, noise_std=-0.1), "noise_std", -0.1),
        (Widen(scale_factor=2, noise_std=float("nan")), "noise_std", float("nan")),
        (Widen(scale_factor=2, filler="ones"), "filler", "ones"),
        (Deepen(extra_layers=0), "extra_layers", 0),
        (Deepen(placement="front"), "placement", "front"),
        (Deepen(init="random"), "init", "random"),
        (Upcycle(num_experts=1), "num_experts", 1),
        (Upcycle(router_init="ones"), "router_init", "ones"),
        (Upcycle(router_std=0.0), "router_std", 0.0),
    ],
)
def test_settings_out_of_bounds(operator, key, value):
    error = refusal_of(operator)

    assert (error.key, repr(error.value)) == (key, repr(value))


def test_a_later_operator_is_checked_against_what_the_earlier_ones_made():
    with pytest.raises(UserError, match="4 experts already"):
        grow(TransformerLM(tiny_config()), [Upcycle(num_experts=4), Upcycle(num_experts=8)])
