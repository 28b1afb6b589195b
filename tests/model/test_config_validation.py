"""A config that cannot be is refused, and the message names the field."""

import math

import pytest

from growlm.model import TransformerLM
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
    ("norm.eps", 1.0),
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
