"""Models that transformers made and saved compute the same as ours, and come back as they were, to the bit."""

import inspect
import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.models.olmo3.modeling_olmo3 import Olmo3RotaryEmbedding

from growlm.checkpoint import load_model, save_model
from growlm.huggingface import HuggingFaceTensors, read_hf_config, to_growlm, to_huggingface
from tests.huggingface.hf_models import (
    CONFIGS,
    FIXED,
    FULL,
    GROUPED,
    SMALL_SHARDS,
    TOLERANCES,
    WINDOW,
    Double,
    assert_same_function,
    load,
    longrope,
    make,
    ours,
    rope,
    tokens_for,
)

LLAMA_3_1 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "factor": 3.0,
    "original_max_position_embeddings": 20,
    "beta_fast": 8.0,
    "beta_slow": 2.0,
    "attention_factor": 1.1,
    "truncate": False,
}


def scaled(kind, **numbers):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **numbers}}


def partly_rotated(fraction):
    parameters = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": fraction}
    return {"rope_parameters": parameters}


def per_kind(full, window_theta):
    """Rotary positions of each kind of block."""
    window = {"rope_type": "default", "rope_theta": window_theta}
    return {"rope_parameters": {FULL: full, WINDOW: window}}


FALCON_40B = {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}
LINEAR = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
VARIANTS = {
    "llama": ("llama", GROUPED),
    "llama, one key head": ("llama", {"num_key_value_heads": 1}),
    "llama, tied": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True, **GROUPED}),
    "llama, wide heads": ("llama", {"head_dim": 14, **rope("llama", 5000.0), **GROUPED}),
    "mistral": ("mistral", {"rms_norm_eps": 1e-3, **GROUPED}),
    "mistral, idle window": ("mistral", {"sliding_window": 64, **GROUPED}),
    "mistral, as v0.1": ("mistral", {"sliding_window": 7, **GROUPED}),
    "mixtral, window": ("mixtral", {"sliding_window": 5, **GROUPED}),
    "mistral, odd width": ("mistral", {"hidden_size": 30, "head_dim": 8, **GROUPED}),
    "mixtral": ("mixtral", GROUPED),
    "mixtral, tied, top 3": (
        "mixtral",
        {"tie_word_embeddings": True, "num_experts_per_tok": 3, **GROUPED},
    ),
    "llama, as Llama 3.1": ("llama", {**scaled("llama3", **LLAMA_3_1), **GROUPED}),
    "llama, yarn": ("llama", scaled("yarn", factor=4.0, original_max_position_embeddings=16)),
    "llama, yarn, all numbers": ("llama", scaled("yarn", **YARN)),
    "llama, attention biases alone": ("llama", {"attention_bias": True, **GROUPED}),
    "qwen2": ("qwen2", {}),
    "qwen2, as Qwen2.5 0.5B": ("qwen2", {"tie_word_embeddings": True, **rope("qwen2", 1e6)}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True, **rope("qwen3", 1e6)}),
    "qwen3, wide heads, biases": ("qwen3", {"head_dim": 14, "attention_bias": True}),
    "qwen3_moe": ("qwen3_moe", rope("qwen3_moe", 1e6)),
    "qwen3_moe, dense blocks": ("qwen3_moe", {"mlp_only_layers": [0]}),
    "qwen2_moe, every second block": ("qwen2_moe", {"decoder_sparse_step": 2}),
    "qwen2, windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen2_moe": ("qwen2_moe", {}),
    "qwen2_moe, gates that sum to one": ("qwen2_moe", {"norm_topk_prob": True}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {}),
    "gemma2, no bounds": (
        "gemma2",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma2, bounds that bite": (
        "gemma2",
        {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.8},
    ),
    "gemma3_text": ("gemma3_text", {}),
    "gemma3_text, bounded logits": ("gemma3_text", {"final_logit_softcapping": 0.8}),
    "gemma3_text, scaled": ("gemma3_text", per_kind(LINEAR, 500.0)),
    "phi3": ("phi3", {}),
    "phi3, window, partly rotated": (
        "phi3",
        {"sliding_window": 7, **partly_rotated(0.75)},
    ),
    "phi3, longrope, short": ("phi3", longrope(24)),
    "phi3, longrope, long": ("phi3", longrope(20)),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {}),
    "olmo3, scaled": (
        "olmo3",
        per_kind({"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, **YARN}, 500.0),
    ),
    "olmoe": ("olmoe", {}),
    "flex_olmo": ("flex_olmo", {"norm_topk_prob": True}),
    "gpt2": ("gpt2", {}),
    "gpt2, relu": ("gpt2", {"activation_function": "relu", "n_inner": 40}),
    "smollm3": ("smollm3", {}),
    "granite": ("granite", {}),
    "granitemoe": ("granitemoe", {}),
    "glm, half rotated": ("glm", partly_rotated(0.5)),
    "glm, no biases, tied": ("glm", {"attention_bias": False, "tie_word_embeddings": True}),
    "glm4": ("glm4", partly_rotated(0.5)),
    "glm4, wide heads, no biases": (
        "glm4",
        {"head_dim": 16, "attention_bias": False, **partly_rotated(0.75)},
    ),
    "glm4, scaled": ("glm4", scaled("yarn", partial_rotary_factor=0.5, **YARN)),
    "ernie4_5": ("ernie4_5", {}),
    "ernie4_5, biases, own head": ("ernie4_5", {"use_bias": True, "tie_word_embeddings": False}),
    "ernie4_5, as Llama 3.1": ("ernie4_5", scaled("llama3", **LLAMA_3_1)),
    "phi": ("phi", {}),
    "phi, as Phi-2": ("phi", {"num_key_value_heads": 4, **partly_rotated(0.5)}),
    "phi, tied": ("phi", {"tie_word_embeddings": True}),
    "falcon": ("falcon", {}),
    "falcon, biases, own head": ("falcon", {"bias": True, "tie_word_embeddings": False}),
    "falcon, as Falcon-40B": ("falcon", FALCON_40B),
    "falcon, as Falcon2-11B": ("falcon", FALCON_40B | {"num_ln_in_parallel_attn": 1}),
    "cohere": ("cohere", {}),
    "cohere, biases, own head": (
        "cohere",
        {"attention_bias": True, "tie_word_embeddings": False, "logit_scale": 0.3},
    ),
    "cohere2": ("cohere2", {}),
    "gptj": ("gptj", {}),
    "codegen": ("codegen", {"tie_word_embeddings": True}),
    "starcoder2": ("starcoder2", {}),
    "starcoder2, window, own head": (
        "starcoder2",
        {"sliding_window": 7, "use_bias": False, "tie_word_embeddings": False}
        | {"head_dim": 14, "hidden_act": "gelu"},
    ),
    "stablelm, as StableLM 2": ("stablelm", {"use_qkv_bias": True, **partly_rotated(0.25)}),
    "stablelm, tied": ("stablelm", {"tie_word_embeddings": True, "layer_norm_eps": 1e-3}),
    "opt": ("opt", {}),
    "opt, own head, no biases": (
        "opt",
        {"tie_word_embeddings": False, "enable_bias": False, "activation_function": "gelu"},
    ),
    "olmo": ("olmo", {}),
    "olmo, as OLMo 1B": ("olmo", {"tie_word_embeddings": True, "attention_bias": True}),
    "seed_oss": ("seed_oss", {"head_dim": 14}),
    "seed_oss, all biases": ("seed_oss", {"attention_out_bias": True, "mlp_bias": True}),
    "seed_oss, no biases": ("seed_oss", {"attention_bias": False}),
    "nemotron, as Minitron": ("nemotron", partly_rotated(0.5)),
    "nemotron, biases, wide heads": (
        "nemotron",
        {"attention_bias": True, "mlp_bias": True, "head_dim": 14, "hidden_act": "gelu"},
    ),
    "arcee, as AFM": ("arcee", scaled("yarn", **YARN)),
    "arcee, biases": ("arcee", {"attention_bias": True, "mlp_bias": True, "head_dim": 14}),
    "helium": ("helium", {}),
    "helium, biases": ("helium", {"attention_bias": True, "mlp_bias": True}),
    "cwm": ("cwm", scaled("llama3", **LLAMA_3_1)),
    "ministral": ("ministral", {}),
    "exaone4": ("exaone4", {}),
    "exaone4, no windows": (
        "exaone4",
        {"sliding_window": None, "layer_types": [FULL] * 3, "tie_word_embeddings": True},
    ),
    "exaone4, no positions": ("exaone4", {"layer_types": [FULL] * 3}),
    "vaultgemma": ("vaultgemma", {}),
    "gpt_bigcode": ("gpt_bigcode", {}),
    "gpt_bigcode, own head": ("gpt_bigcode", {"tie_word_embeddings": False, "n_inner": 40}),
    "granitemoeshared": ("granitemoeshared", {}),
    "granitemoeshared, none shared": ("granitemoeshared", {"shared_intermediate_size": 0}),
    "llama, as DeepSeek-Coder": ("llama", scaled("linear", factor=4.0)),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox, as Pythia": ("gpt_neox", {"use_parallel_residual": True, **partly_rotated(0.25)}),
    "gpt_neox, half rotated": ("gpt_neox", partly_rotated(0.5)),
    "gpt_neox, tied": ("gpt_neox", {"tie_word_embeddings": True, "layer_norm_eps": 1e-3}),
}
SLOW = {
    "llama, one key head",
    "llama, tied",
    "llama, wide heads",
    "llama, yarn",
    "llama, attention biases alone",
    "mistral",
    "mistral, odd width",
    "mixtral, tied, top 3",
    "mixtral, window",
    "qwen2",
    "qwen3, wide heads, biases",
    "qwen2_moe, gates that sum to one",
    "gemma2, no bounds",
    "gemma3_text, scaled",
    "phi3",
    "phi3, longrope, long",
    "olmo3",
    "gpt2, relu",
    "glm, no biases, tied",
    "glm4, scaled",
    "ernie4_5, as Llama 3.1",
    "phi",
    "phi, tied",
    "falcon",
    "falcon, biases, own head",
    "falcon, as Falcon-40B",
    "cohere",
    "cohere, biases, own head",
    "gptj",
    "codegen",
    "starcoder2",
    "stablelm, as StableLM 2",
    "stablelm, tied",
    "opt, own head, no biases",
    "olmo",
    "seed_oss",
    "seed_oss, all biases",
    "seed_oss, no biases",
    "nemotron, biases, wide heads",
    "arcee, as AFM",
    "arcee, biases",
    "helium",
    "helium, biases",
    "cwm",
    "ministral",
    "exaone4, no windows",
    "exaone4, no positions",
    "vaultgemma",
    "gpt_bigcode, own head",
    "granitemoeshared",
    "granitemoeshared, none shared",
    "llama, as DeepSeek-Coder",
    "gpt_neox",
    "gpt_neox, half rotated",
    "gpt_neox, tied",
}
"""Variants whose parts others have, too."""
OLMO_3_ANGLES = inspect.signature(Olmo3RotaryEmbedding.compute_default_rope_parameters)
MARKS = dict.fromkeys(SLOW, pytest.mark.slow) | {
    "olmo3, scaled": pytest.mark.skipif(
        "layer_type" not in OLMO_3_ANGLES.parameters,
        reason="OLMo 3's class has one set of angles in this release of transformers",
    )
}
everywhere = pytest.mark.parametrize(
    ("family", "changes"),
    [
        pytest.param(*case, id=name, marks=[MARKS[name]] if name in MARKS else [])
        for name, case in VARIANTS.items()
    ],
)


def tensors_of(folder):
    """All tensors of a folder, whatever file they are in."""
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


UNCOMPARED = (
    "transformers_version",
    "growlm",
    "sliding_window",  # null, or so long that it has no effect
    "max_window_layers",  # only says what layer_types says, too
    "rope_theta",  # repeats one of rope_parameters
    "no_rope_layer_interval",  # no_rope_layers says it, too
    "_sliding_window_pattern",  # likewise
    "partial_rotary_factor",  # repeats one of rope_parameters
    "use_bidirectional_attention",  # null or false
    "hidden_activation",  # Gemma 1: not read
    "n_inner",  # null or 4 · n_embd
    *("attn_pdrop", "embd_pdrop", "resid_pdrop"),
    *("dropout", "attention_dropout", "residual_dropout"),
)


def config_of(folder):
    """What transformers makes of a folder's config.json, less what says nothing about the model."""
    config = CONFIGS[read_hf_config(folder)[1]["huggingface"]["model_type"]].from_pretrained(folder)
    found = config.to_dict()
    for name in UNCOMPARED:
        found.pop(name, None)
    if {"moe_intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"} & {*found, *vars(config)}:
        found.pop("intermediate_size", None)  # means nothing: all blocks are mixtures; not its key
    if "decoder_sparse_step" in found:  # the two keys together say which blocks are mixtures
        period, dense = found.pop("decoder_sparse_step"), found.pop("mlp_only_layers")
        blocks = range(config.num_hidden_layers)
        found["mixtures"] = [i for i in blocks if i not in dense and (i + 1) % period == 0]
    if "long_factor" in (found.get("rope_parameters") or {}):
        found["rope_parameters"].pop("factor", None)  # the ratio of the lengths, where it is absent
    found["head_dim"] = getattr(config, "head_dim", None) or 8
    return found


@everywhere
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_the_same_function(tmp_path, family, changes, dtype):
    theirs = make(family, dtype=dtype, **changes)
    theirs.save_pretrained(tmp_path / "hf")
    assert_same_function(ours(tmp_path / "hf"), theirs, TOLERANCES[dtype])


@everywhere
def test_the_same_loss_and_gradients(tmp_path, family, changes):
    theirs = make(family, dtype=torch.float64, **changes).train()
    theirs.save_pretrained(tmp_path / "hf")
    tokens = tokens_for(theirs.config)
    with Double():
        expected = theirs(tokens, labels=tokens).loss
        expected.backward()
    model = ours(tmp_path / "hf").train()
    loss = model.loss(tokens)
    loss.backward()
    assert abs(loss - expected) <= 1e-10

    with (
        torch.no_grad()
    ):  # as a model whose weights are the gradients, they come under our names too
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    theirs.save_pretrained(tmp_path / "gradients")
    gradients = HuggingFaceTensors(tmp_path / "gradients")
    compared = 0
    for name, parameter in model.named_parameters():
        if family == "olmo" and "norm" in name:
            continue  # its class has no gains
        difference = (parameter.grad - gradients.read(name)).abs().max()
        assert difference <= 1e-10, name
        compared += bool(parameter.grad.abs().max() > 1e-6)
    assert compared >= 5


@everywhere
@pytest.mark.parametrize(
    "shards",
    [{}, pytest.param({"max_shard_size": SMALL_SHARDS}, marks=pytest.mark.slow)],
    ids=["one", "shards"],
)
def test_there_and_back(tmp_path, family, changes, shards):
    theirs = make(family, **changes)
    theirs.save_pretrained(tmp_path / "hf", **shards)
    assert (len(list((tmp_path / "hf").glob("*.safetensors"))) > 1) == bool(shards)

    to_growlm(tmp_path / "hf", tmp_path / "ours")
    to_huggingface(tmp_path / "ours", tmp_path / "back")

    before, after = tensors_of(tmp_path / "hf"), tensors_of(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert config_of(tmp_path / "hf") == config_of(tmp_path / "back")
    assert_same_function(load_model(tmp_path / "ours")[0].eval(), load(tmp_path / "back"), 1e-5)


EPSILONS = dict.fromkeys(("gpt_neox", "phi", "cohere", "cohere2", "stablelm"), "layer_norm_eps")
EPSILONS |= dict.fromkeys(
    ("gpt2", "gpt_bigcode", "falcon", "gptj", "codegen"), "layer_norm_epsilon"
)
EPSILONS |= {"nemotron": "norm_eps", "starcoder2": "norm_epsilon"}
FREE_WIDTH = (
    *("mistral", "mixtral", "qwen3", "qwen3_moe", "gemma", "glm", "glm4", "ernie4_5"),
    *("starcoder2", "seed_oss", "nemotron", "ministral", "exaone4"),
)
"""The families whose width need not be a multiple of the number of heads."""
FREE_HEADS = (*FREE_WIDTH, "llama", "gemma2", "gemma3_text", "vaultgemma", "arcee", "cwm")
"""The families with a key for the size of heads."""
LLAMA_LIKE = ("arcee", "helium", "ministral", "cwm", "vaultgemma")
"""Families whose parts others have, too."""
BIAS_KEYS = {
    "llama": ("attention_bias", "mlp_bias"),
    "glm": ("attention_bias",),
    "glm4": ("attention_bias",),
    "ernie4_5": ("use_bias",),
    "cohere": ("attention_bias",),
    "cohere2": ("attention_bias",),
    "starcoder2": ("use_bias",),
    "stablelm": ("use_qkv_bias",),
    "olmo": ("attention_bias",),
    "seed_oss": ("mlp_bias", "attention_bias"),
    "nemotron": ("mlp_bias", "attention_bias"),
    "arcee": ("mlp_bias", "attention_bias"),
    "helium": ("mlp_bias", "attention_bias"),
    "cwm": ("mlp_bias",),
}


SLOW_SHAPES = {"phi", "cohere", "cohere2", "gptj", "codegen"}
"""Families whose sizes others have, too."""


@st.composite
def shapes(draw, family):
    heads, layers = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    head_dim = 2 * draw(st.integers(1, 5))
    width = heads * head_dim
    shape = {
        "vocab_size": draw(st.integers(3, 40)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(1, 20)),
        "max_position_embeddings": draw(st.integers(2, 30)),
        "tie_word_embeddings": draw(st.booleans()),
        EPSILONS.get(family, "rms_norm_eps"): draw(st.floats(1e-8, 1e-2)),
        **rope(family, draw(st.floats(2.0, 1e6))),
    }
    if family == "gpt_neox":
        return shape | {"hidden_size": width, "use_parallel_residual": draw(st.booleans())}
    if family in ("gpt2", "gpt_bigcode"):
        return shape | {"hidden_size": width, "n_inner": shape["intermediate_size"]}
    if family in ("gptj", "codegen"):
        if family == "codegen":  # its heads are divided among four
            shape["num_attention_heads"], width = 4 * heads, 4 * width
        rotated = 2 * draw(st.integers(1, head_dim // 2))
        sizes = {"n_inner": shape["intermediate_size"], "rotary_dim": rotated}
        return shape | {"hidden_size": width} | sizes
    if family == "opt":
        shape |= {"ffn_dim": shape["intermediate_size"], "enable_bias": draw(st.booleans())}
        return shape | {"hidden_size": width}
    if family == "helium":
        shape["head_dim"] = head_dim
    if family in FREE_HEADS:
        shape["head_dim"] = head_dim
        width = (
            draw(st.integers(1, 40)) if family in FREE_WIDTH else heads * draw(st.integers(1, 10))
        )
    shape["num_key_value_heads"] = draw(
        st.sampled_from([n for n in (1, 2, 4, heads) if not heads % n])
    )
    shape |= {key: draw(st.booleans()) for key in BIAS_KEYS.get(family, ())}
    if family == "falcon":
        shape |= {"num_kv_heads": shape["num_key_value_heads"], "bias": draw(st.booleans())}
        shape |= {"ffn_hidden_size": shape["intermediate_size"]}
        grouped = {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}
        return shape | {"hidden_size": width} | draw(st.sampled_from([{}, grouped]))
    if "layer_types" in FIXED[family]:
        shape["layer_types"] = draw(
            st.lists(st.sampled_from([WINDOW, FULL]), min_size=layers, max_size=layers)
        )
    if "gemma" in family:  # its class computes the square root of the width in fp32
        width = draw(st.sampled_from([4, 16, 36])) * (1 if family == "gemma" else heads**2)
    if "num_experts_per_tok" in FIXED[family]:
        experts = draw(st.integers(2, 5))
        of_family = "num_experts" if "num_experts" in FIXED[family] else "num_local_experts"
        shape |= {of_family: experts, "num_experts_per_tok": draw(st.integers(2, experts))}
        if "moe_intermediate_size" in FIXED[family]:
            shape["moe_intermediate_size"] = draw(st.integers(2, 20))
        # transformers 5.6 saves experts without dimensions of size one.
        assume(width > 1 and shape["intermediate_size"] > 1)
    return {"hidden_size": width} | shape


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in {*LLAMA_LIKE, *SLOW_SHAPES} else [])
        for name in CONFIGS
    ],
)
@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape(tmp_path_factory, family, data):
    check_a_shape(tmp_path_factory, family, data)


@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGS)
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape_more_cases(tmp_path_factory, family, data):
    check_a_shape(tmp_path_factory, family, data)


def check_a_shape(tmp_path_factory, family, data):
    folder = tmp_path_factory.mktemp("shape")
    theirs = make(family, dtype=torch.float64, **data.draw(shapes(family)))
    size = data.draw(st.sampled_from(["2KB", "1GB"]))
    theirs.save_pretrained(folder / "hf", max_shard_size=size)
    tensors = HuggingFaceTensors(folder / "hf")

    to_growlm(folder / "hf", folder / "ours")
    to_huggingface(folder / "ours", folder / "back")

    model, _ = load_model(folder / "ours")
    state = model.state_dict()
    assert tensors.names == list(state)
    for name, tensor in state.items():
        entry = tensors.info(name)
        assert (entry.dtype, entry.shape) == (tensor.dtype, tuple(tensor.shape))
        assert torch.equal(tensors.read(name), tensor)
    before, after = tensors_of(folder / "hf"), tensors_of(folder / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    tokens = tokens_for(theirs.config)
    with torch.no_grad(), Double():
        expected = theirs(tokens).logits
    with torch.no_grad():
        assert (model(tokens) - expected).abs().max() <= 1e-10


def test_experts_as_transformers_holds_them_in_memory(tmp_path):
    theirs = make("mixtral")
    theirs.save_pretrained(tmp_path / "hub")
    theirs.save_pretrained(tmp_path / "memory", save_original_format=False)
    assert any("gate_up_proj" in name for name in tensors_of(tmp_path / "memory"))

    hub, memory = (HuggingFaceTensors(tmp_path / name) for name in ("hub", "memory"))

    assert hub.names == memory.names
    assert all(torch.equal(hub.read(name), memory.read(name)) for name in hub.names)


@pytest.mark.parametrize("dense", [[0], [1, 2]])
def test_dense_blocks_in_either_layout(tmp_path, dense):
    """The layout is that of the mixtures, wherever they are; a dense block has fewer tensors."""
    theirs = make("qwen3_moe", mlp_only_layers=dense)
    theirs.save_pretrained(tmp_path / "hub")
    theirs.save_pretrained(tmp_path / "memory", save_original_format=False)
    assert any("gate_up_proj" in name for name in tensors_of(tmp_path / "memory"))

    hub, memory = (HuggingFaceTensors(tmp_path / name) for name in ("hub", "memory"))

    assert all(torch.equal(hub.read(name), memory.read(name)) for name in hub.names)


def test_the_head_of_gpt_neox_under_both_its_names(tmp_path):
    """It is saved as `embed_out` or, by some releases of transformers, as `lm_head`."""
    make("gpt_neox").save_pretrained(tmp_path / "old")
    tensors = tensors_of(tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
    save_file(tensors, tmp_path / "new" / "model.safetensors", {"format": "pt"})
    old, new = (HuggingFaceTensors(tmp_path / name) for name in ("old", "new"))
    assert all(torch.equal(old.read(name), new.read(name)) for name in old.names)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_a_tied_model_that_stores_only_its_head(tmp_path, family):
    make(family, tie_word_embeddings=True).save_pretrained(tmp_path / "usual")
    shutil.copytree(tmp_path / "usual", tmp_path / "head")
    tensors = tensors_of(tmp_path / "head")
    (embedding,) = (
        name for name in tensors if name.endswith(("embed_tokens.weight", "wte.weight"))
    )
    tensors["lm_head.weight"] = tensors.pop(embedding)
    save_file(tensors, tmp_path / "head/model.safetensors", {"format": "pt"})
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "head")

    ours, usual = (HuggingFaceTensors(tmp_path / name) for name in ("head", "usual"))

    assert all(torch.equal(ours.read(name), usual.read(name)) for name in usual.names)
    assert torch.equal(ours.read("embedding.weight"), reference.get_input_embeddings().weight)


@pytest.mark.parametrize("family", ["llama", "olmo3"])
@pytest.mark.parametrize(
    ("current", "former"),
    [
        ({"rope_type": "default", "rope_theta": 5e5}, {"rope_type": "linear", "factor": 2.0}),
        (
            {"rope_type": "default", "rope_theta": 5e5},
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0},
        ),
        ({"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}, {"rope_type": "default"}),
        ({"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}, {}),
        ({"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}, None),
    ],
)
def test_two_sets_of_positions_mean_what_they_mean_to_transformers(
    tmp_path, family, current, former
):
    make(family).save_pretrained(tmp_path / "model")
    path = tmp_path / "model/config.json"
    content = json.loads(path.read_text())
    if FULL in content["rope_parameters"]:
        current = content["rope_parameters"] | {FULL: current}
    changes = {"rope_parameters": current, "rope_scaling": former, "rope_theta": 99.0}
    path.write_text(json.dumps(content | changes))

    ours = read_hf_config(tmp_path / "model")[0].rope
    CONFIGS[family].from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "theirs")

    assert ours == read_hf_config(tmp_path / "theirs")[0].rope


def test_folders_are_given_as_text_or_paths(tmp_path):
    make("llama").save_pretrained(tmp_path / "hf")
    to_growlm(str(tmp_path / "hf"), str(tmp_path / "ours"))
    model, record = load_model(str(tmp_path / "ours"))
    save_model(model, str(tmp_path / "again"), record)
    to_huggingface(str(tmp_path / "again"), str(tmp_path / "back"))

    before, after = tensors_of(tmp_path / "hf"), tensors_of(tmp_path / "back")

    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
