"""A config that cannot be is refused, and the message names the field."""

import math

import pytest

from growlm.model import ModelConfig, TransformerLM
from growlm.model.config import replace_fields
from growlm.runtime.errors import UserError
from tests.model.tiny_models import tiny_config

BAD = [
    ("vocab_size", -1),
    ("d_model", 0),
    ("n_layers", 0),
    ("n_heads", 0),
    ("n_kv_heads", 0),
    ("n_kv_heads", 3),
    ("n_kv_heads", 8),
    ("head_dim", 0),
    ("head_dim", 5),
    ("d_ff", 0),
    ("max_seq_len", 1),
    ("norm.kind", "batchnorm"),
    ("feed_forward.kind", "swish"),
    ("norm.eps", 0.0),
    ("norm.eps", 1.5),
    ("norm.eps", math.nan),
    ("rope.theta", 1.0),
    ("rope.theta", math.inf),
    ("num_experts", -1),
    ("num_experts", 1),
    ("top_k", 0),
    ("routing.balance_weight", -0.1),
    ("routing.z_weight", -0.1),
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_bad_field_is_named(field, value):
    config = replace_fields(tiny_config(), {field: value})

    with pytest.raises(UserError) as refusal:
        config.validate()

    assert refusal.value.key == field
    assert str(refusal.value).startswith(f"{field}={value}: ")


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        ({}, r"norm\.shared=true: needs norm\.parallel_residual=true"),
        (
            {"kind": "rmsnorm", "placement": "post", "parallel_residual": True},
            r"norm\.shared=true: needs norm\.placement=pre or both",
        ),
    ],
)
def test_a_shared_norm_needs_two_readers(norm, reason):
    with pytest.raises(UserError, match=reason):
        tiny_config(norm=norm | {"shared": True}).validate()


@pytest.mark.parametrize(("top_k", "reason"), [(1, "no gradient"), (5, "at most num_experts=4")])
def test_bad_top_k_is_refused_with_the_reason(top_k, reason):
    with pytest.raises(UserError, match=reason) as refusal:
        tiny_config(num_experts=4, top_k=top_k).validate()

    assert (refusal.value.key, refusal.value.value) == ("top_k", top_k)


def test_a_model_cannot_be_built_from_a_bad_config():
    with pytest.raises(UserError, match="head_dim=5: must give an even number"):
        TransformerLM(tiny_config(head_dim=5))


@pytest.mark.parametrize("top_k", [2, 4])
def test_good_configs_pass(top_k):
    tiny_config("default").validate()
    tiny_config("llama", num_experts=4, top_k=top_k, n_kv_heads=1).validate()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shared_d_ff": 8}, r"shared_d_ff=8: needs num_experts"),
        ({"expert_d_ff": 8}, r"expert_d_ff=8: needs num_experts"),
        ({"layers": {"mixture": [False]}}, r"layers\.mixture=\(False, .*\): needs num_experts"),
        (
            {"num_experts": 4, "layers": {"mixture": [False]}},
            r"num_experts=4: has no effect: no bl",
        ),
        (
            {"num_experts": 4, "routing": {"shared_gate": True}},
            r"routing\.shared_gate=True: needs shared_d_ff",
        ),
        ({"layers": {"attention": ["window"]}}, r"layers\.attention=window: needs attention\.wi"),
        (
            {"attention": {"window": 4}, "layers": {"attention": ["full"]}},
            r"attention\.window=4: has no effect",
        ),
        (
            {"attention": {"window": 4}, "layers": {"attention": ["full", "window"] * 7}},
            r"layers\.attention=14 entries: must have at most n_layers=12",
        ),
        ({"norm": {"kind": "rmsnorm", "gain_offset": 0.5}}, r"gain_offset=0\.5: must be 0 or 1"),
        ({"layers": {"attention": ["wide"]}}, r"layers\.attention=wide: must be one of full, win"),
        ({"rope": {"window_theta": 10.0}}, r"rope\.window_theta=10\.0: has no effect without att"),
        ({"embedding": {"position_offset": 2}}, r"position_offset=2: has no effect without embed"),
        ({"norm": {"placement": "both"}}, r"norm\.placement=both: needs norm\.kind=rmsnorm"),
        ({"rope": {"scaling": {"kind": "longrope"}}}, r"short_factors=0: must have 32 numbers"),
    ],
)
def test_parts_that_do_not_fit_each_other(fields, message):
    with pytest.raises(UserError, match=message):
        ModelConfig(**fields).validate()


def test_dense_blocks_among_mixtures():
    some = {"mixture": [False, True]}
    config = ModelConfig(n_layers=3, num_experts=4, d_ff=64, expert_d_ff=16, layers=some)
    config.validate()
    assert config.mixtures == [1]
    sizes = config.axis_sizes()
    assert (sizes["hidden"], sizes["expert_hidden"]) == (64, 16)
    dense = config.with_blocks([0, 2])
    assert dense == ModelConfig(n_layers=2, d_ff=64)
    alike = ModelConfig(n_layers=1, num_experts=4, d_ff=16)
    assert config.with_blocks([1]) == alike
    assert alike == ModelConfig(n_layers=1, num_experts=4, d_ff=64, expert_d_ff=16)


def test_a_shorter_list_is_a_pattern():
    pattern = {"attention": ["window", "window", "full"], "rotary": [True, False]}
    config = ModelConfig(n_layers=4, attention={"window": 3}, layers=pattern)
    assert config.layers.attention == ("window", "window", "full", "window")
    assert [config.block_window(block) for block in range(4)] == [3, 3, None, 3]
    assert [config.rotates(block) for block in range(4)] == [True, False, True, False]
    written = ModelConfig(n_layers=4, attention={"window": 3}, layers={"rotary": [True] * 4})
    assert written == ModelConfig(n_layers=4, attention={"window": 3})
    assert config.with_blocks([2]).attention.window is None
