"""List what growlm's model does not have, with the model types and the config keys that would need it.

Checked against the classes of transformers 5 (`models/<model type>`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from growlm.huggingface.keys.config_keys import ConfigReader

DOCS_PAGE = "docs/architectures.md"
NO_TABLE = "no table describes it yet"


@dataclass(frozen=True)
class UnsupportedFeature:
    """A part of other models that growlm's model does not have.

    Attributes:
        name: Name of the feature, for messages.
        model_types: Model types of transformers that have it, by default at least.
        keys: Config keys that turn it on, which no table reads, and their values that do not; a string is the name
            of another key, whose value does not either.
        verb: Verb that agrees with the name.
    """

    name: str
    model_types: tuple[str, ...] = ()
    keys: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    verb: Literal["is", "are"] = "is"


POSITIONS_AND_ATTENTION = (
    UnsupportedFeature(
        "multi-head latent attention",
        (
            *("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa"),
            *("kimi_k2", "kimi_linear", "longcat_flash", "minicpm3", "youtu"),
        ),
        {"kv_lora_rank": (None,)},
    ),
    UnsupportedFeature(
        "chunked attention", ("llama4", "llama4_text"), {"attention_chunk_size": (None,)}
    ),
    UnsupportedFeature("attention sinks", ("gpt_oss",), verb="are"),
    UnsupportedFeature("differential attention", ("diffllama",)),
    UnsupportedFeature("mixtures of attention heads", ("jetmoe",), verb="are"),
    UnsupportedFeature("a bias of the attention output alone", ("gpt_neo",)),
    UnsupportedFeature("an attention scale that depends on the position", ("ministral3",)),
    UnsupportedFeature("clipping of queries, keys and values", ("dbrx",), {"clip_qkv": (None,)}),
    UnsupportedFeature(
        "ALiBi position biases", ("bloom", "mpt"), {"alibi": (None, False)}, verb="are"
    ),
    UnsupportedFeature("sinusoidal positions", ("xglm",), verb="are"),
    UnsupportedFeature(
        "bidirectional attention",
        (
            *("albert", "bert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert"),
            *("roberta", "xlm-roberta"),
        ),
        {"is_causal": (None, True)},
    ),
)
NORMS = (
    UnsupportedFeature(
        "LayerNorm of queries and keys",
        ("persimmon",),
        {"qk_layernorm": (None, False), "use_qk_norm": (None, False)},
    ),
    UnsupportedFeature(
        "normalization of queries and keys after the rotation",
        ("hunyuan_v1_dense", "hunyuan_v1_moe"),
    ),
    UnsupportedFeature("normalization inside attention and feed-forward blocks", ("bitnet",)),
    UnsupportedFeature(
        "normalization after the residual addition",
        ("openai-gpt",),
        {"do_layer_norm_before": (None, True)},
    ),
)
FEED_FORWARD_AND_EMBEDDINGS = (
    UnsupportedFeature("the xIELU activation", ("apertus",)),
    UnsupportedFeature("biases of experts", ("gpt_oss",), verb="are"),
    UnsupportedFeature("sigmoid routing", ("dots1", "glm4_moe", "minimax_m2")),
    UnsupportedFeature("SparseMixer routing", ("phimoe",)),
    UnsupportedFeature("a selection bias on the experts' probabilities", ("ernie4_5_moe",)),
    UnsupportedFeature(
        "embeddings of another width than the model",
        keys={"word_embed_proj_dim": (None, "hidden_size")},
        verb="are",
    ),
    UnsupportedFeature(
        "per-layer embeddings",
        ("gemma3n_text", "gemma4_text"),
        {"hidden_size_per_layer_input": (None, 0)},
        verb="are",
    ),
)
OTHER_BLOCKS = (
    UnsupportedFeature(
        "state-space blocks",
        (
            *("bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "mamba"),
            *("mamba2", "nemotron_h", "zamba", "zamba2"),
        ),
        verb="are",
    ),
    UnsupportedFeature(
        "linear attention",
        (
            *("kimi_linear", "minimax", "olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text"),
            "qwen3_next",
        ),
    ),
    UnsupportedFeature("recurrent blocks", ("recurrent_gemma", "rwkv", "xlstm"), verb="are"),
    UnsupportedFeature("short convolutions", ("lfm2", "lfm2_moe"), verb="are"),
    UnsupportedFeature(
        "settings that differ between blocks", keys={"per_layer_config": (None,)}, verb="are"
    ),
)
OTHER_INPUTS_AND_WEIGHTS = (
    UnsupportedFeature(
        "an encoder beside the decoder",
        (
            *("bart", "longt5", "m2m_100", "marian", "mbart", "mt5", "pegasus"),
            *("switch_transformers", "t5", "t5gemma", "umt5", "whisper"),
        ),
        {"is_encoder_decoder": (None, False)},
    ),
    UnsupportedFeature("cross-attention", keys={"add_cross_attention": (None, False)}),
    UnsupportedFeature(
        "image input",
        (
            *("gemma3", "gemma3n", "gemma4", "glm4v", "idefics2", "idefics3", "internvl"),
            *("kimi_k25", "llama4", "llava", "llava_next", "llava_onevision", "mistral3"),
            *("mllama", "paligemma", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe"),
            *("qwen3_vl", "qwen3_vl_moe", "smolvlm"),
        ),
        {"vision_config": (None,)},
    ),
    UnsupportedFeature("quantization of the weights", keys={"quantization_config": (None,)}),
)
UNSUPPORTED_FEATURES = (
    *POSITIONS_AND_ATTENTION,
    *NORMS,
    *FEED_FORWARD_AND_EMBEDDINGS,
    *OTHER_BLOCKS,
    *OTHER_INPUTS_AND_WEIGHTS,
)
UNDESCRIBED_TYPES = ("biogpt",)
"""Types of models that growlm's model could compute, and that no table describes."""


def explain_model_type(keys: ConfigReader) -> str:
    """Return why a model type that no table describes is refused.

    Args:
        keys: Reader of the config.
    """
    model_type = keys.get("model_type")
    found = [
        feature
        for feature in UNSUPPORTED_FEATURES
        if model_type in feature.model_types
        or any(not _is_neutral(keys, key, values) for key, values in feature.keys.items())
    ]
    if found:
        return f"{_describe(*found)}; {DOCS_PAGE} lists what is"
    if model_type in UNDESCRIBED_TYPES:
        return f"{NO_TABLE}; {DOCS_PAGE} lists what is supported"
    return f"is not supported; {DOCS_PAGE} lists what is"


def check_unsupported_keys(keys: ConfigReader) -> None:
    """Check that no key of a config turns on a feature that growlm's model does not have.

    Args:
        keys: Reader of the config.

    Raises:
        UserError: If a key does.
    """
    for feature in UNSUPPORTED_FEATURES:
        for key, values in feature.keys.items():
            if not _is_neutral(keys, key, values):
                shown = ("null" if each is None else str(each) for each in values)
                reason = f"must be {' or '.join(shown)}: {_describe(feature)}"
                keys.raise_error(key, keys.get(key), reason)


def _is_neutral(keys: ConfigReader, key: str, values: tuple[Any, ...]) -> bool:
    value = keys.get(key)
    neutral = [keys.get(each) if isinstance(each, str) else each for each in values]
    return any(value == each and type(value) is type(each) for each in neutral)


def _describe(*features: UnsupportedFeature) -> str:
    names = [feature.name for feature in features]
    listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    verb = features[0].verb if len(names) == 1 else "are"
    return f"{listed} {verb} not supported"
