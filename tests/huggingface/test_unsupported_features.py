"""A model that growlm cannot be is refused by the name of what growlm lacks, in one line."""

import json

import pytest

from growlm.huggingface import read_hf_config
from growlm.huggingface.architectures import ARCHITECTURES
from growlm.huggingface.unsupported_features import (
    DOCS_PAGE,
    UNDESCRIBED_TYPES,
    UNSUPPORTED_FEATURES,
)
from growlm.runtime.errors import UserError

LLAMA = {
    "model_type": "llama",
    "vocab_size": 31,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def read(folder, **content):
    (folder / "config.json").write_text(json.dumps(content))
    return read_hf_config(folder)[0]


def refusal(folder, **content):
    with pytest.raises(UserError) as caught:
        read(folder, **content)
    return str(caught.value).removeprefix(f"{folder / 'config.json'}: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"model_type": "deepseek_v3"}, "multi-head latent attention is not supported"),
        ({"model_type": "bloom"}, "ALiBi position biases are not supported"),
        ({"model_type": "zamba2"}, "state-space blocks are not supported"),
        ({"model_type": "persimmon"}, "LayerNorm of queries and keys is not supported"),
        (
            {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}},
            "attention sinks, biases of experts and quantization of the weights are not supported",
        ),
        (
            {"model_type": "xyz", "hidden_size": 768, "word_embed_proj_dim": 768},
            "is not supported",
        ),
        (
            {"model_type": "xyz", "hidden_size": 1024, "word_embed_proj_dim": 512},
            "embeddings of another width than the model are not supported",
        ),
        (
            {"model_type": "xyz", "kv_lora_rank": 512},
            "multi-head latent attention is not supported",
        ),
        ({"model_type": "xyz"}, "is not supported"),
        ({}, "is not supported"),
    ],
)
def test_an_unknown_type_is_refused_by_feature(tmp_path, content, reason):
    shown = content.get("model_type", "null")
    expected = f"model_type={shown}: {reason}; docs/architectures.md lists what is"
    assert refusal(tmp_path, **content) == expected


def test_a_type_without_a_table_is_refused(tmp_path):
    reason = "no table describes it yet; docs/architectures.md lists what is supported"
    assert refusal(tmp_path, model_type="biogpt") == f"model_type=biogpt: {reason}"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("kv_lora_rank", 512, "must be null: multi-head latent attention is not supported"),
        ("alibi", True, "must be null or False: ALiBi position biases are not supported"),
        ("clip_qkv", 8.0, "must be null: clipping of queries, keys and values is not supported"),
        (
            "per_layer_config",
            {"0": {}},
            "must be null: settings that differ between blocks are not supported",
        ),
        (
            "word_embed_proj_dim",
            16,
            "must be null or hidden_size: embeddings of another width than the model are not supported",
        ),
        (
            "use_qk_norm",
            True,
            "must be null or False: LayerNorm of queries and keys is not supported",
        ),
        (
            "qk_layernorm",
            True,
            "must be null or False: LayerNorm of queries and keys is not supported",
        ),
        (
            "do_layer_norm_before",
            False,
            "must be null or True: normalization after the residual addition is not supported",
        ),
        ("is_causal", False, "must be null or True: bidirectional attention is not supported"),
    ],
)
def test_a_known_type_with_a_key_of_an_unsupported_feature_is_refused(tmp_path, key, value, reason):
    assert refusal(tmp_path, **LLAMA, **{key: value}) == f"{key}={value}: {reason}"


def test_neutral_values_of_such_keys_change_nothing(tmp_path):
    neutral = {"alibi": False, "kv_lora_rank": None, "is_causal": True, "word_embed_proj_dim": 32}
    assert read(tmp_path, **LLAMA, **neutral) == read(tmp_path, **LLAMA)


def test_no_supported_type_is_listed_as_refused():
    named = [name for feature in UNSUPPORTED_FEATURES for name in feature.model_types]
    named += UNDESCRIBED_TYPES
    assert not {*named} & {each.model_type for each in ARCHITECTURES}
    assert not {*UNDESCRIBED_TYPES} & {*named[: -len(UNDESCRIBED_TYPES)]}


def test_no_key_of_a_feature_is_read_by_a_table():
    """They are refused in every architecture."""
    named = {key for feature in UNSUPPORTED_FEATURES for key in feature.keys}
    assert not [each.class_name for each in ARCHITECTURES if each.keys & named]


@pytest.mark.parametrize("feature", UNSUPPORTED_FEATURES, ids=lambda feature: feature.name)
def test_every_type_is_refused_by_its_feature(tmp_path, feature):
    for model_type in feature.model_types:
        message = refusal(tmp_path, model_type=model_type)
        assert feature.name in message
        assert message.endswith(f"not supported; {DOCS_PAGE} lists what is")
        assert "\n" not in message
