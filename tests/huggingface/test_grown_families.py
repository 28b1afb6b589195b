"""Models that transformers made: taken in, grown in every way, taken out, and loaded by transformers again."""

import pytest
import torch

from growlm.checkpoint import load_model, save_model
from growlm.growth import Deepen, MultiplyExperts, Upcycle, Widen, grow
from growlm.huggingface import to_growlm, to_huggingface
from growlm.inference.generation import generate
from growlm.inference.sampling import Sampling
from growlm.runtime.errors import UserError
from tests.huggingface.hf_models import FULL, load, longrope, make, precision, rope, tokens_for

PYTHIA = {
    "use_parallel_residual": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
}
HALF = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
}
LLAMA_3_1 = {
    "num_key_value_heads": 2,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}
FALCON_40B = {"new_decoder_architecture": True, "num_kv_heads": 2}
FAMILIES = {
    "Llama 3.1": ("llama", LLAMA_3_1),
    "Llama 3.2, tied": ("llama", LLAMA_3_1 | {"tie_word_embeddings": True}),
    "Mistral 0.3": ("mistral", {"sliding_window": None}),
    "Qwen2.5": ("qwen2", rope("qwen2", 1e6)),
    "Qwen2.5, tied": ("qwen2", {"tie_word_embeddings": True}),
    "Qwen3": ("qwen3", rope("qwen3", 1e6)),
    "Qwen3, tied": ("qwen3", {"tie_word_embeddings": True}),
    "Qwen3-MoE": ("qwen3_moe", rope("qwen3_moe", 1e6)),
    "Qwen3-MoE, dense blocks": ("qwen3_moe", {"mlp_only_layers": [0]}),
    "Qwen2-MoE": ("qwen2_moe", rope("qwen2_moe", 1e6)),
    "Gemma": ("gemma", {}),
    "Gemma 2": ("gemma2", {}),
    "Gemma 3": ("gemma3_text", {}),
    "Mistral 0.1": ("mistral", {"sliding_window": 7}),
    "Phi-3": ("phi3", {"sliding_window": 7}),
    "Phi-3, longrope": ("phi3", longrope(12)),
    "Phi-4": ("phi3", {}),
    "OLMo 2": ("olmo2", {}),
    "OLMo 3": ("olmo3", {}),
    "OLMoE": ("olmoe", {}),
    "Pythia": ("gpt_neox", PYTHIA),
    "GPT-2": ("gpt2", {}),
    "SmolLM3, tied": ("smollm3", {"tie_word_embeddings": True}),
    "SmolLM3": ("smollm3", {"tie_word_embeddings": False}),
    "Granite": ("granite", {}),
    "Granite, tied": ("granite", {"tie_word_embeddings": True}),
    "Granite-MoE": ("granitemoe", {}),
    "GLM-4": ("glm", HALF),
    "GLM-4 0414": ("glm4", HALF),
    "ERNIE 4.5, tied": ("ernie4_5", {"tie_word_embeddings": True}),
    "StarCoder2, tied": ("starcoder2", {"tie_word_embeddings": True}),
    "StarCoder2, window": ("starcoder2", {"tie_word_embeddings": False, "sliding_window": 7}),
    "StableLM 2": ("stablelm", {"use_qkv_bias": True}),
    "OPT, tied": ("opt", {"tie_word_embeddings": True}),
    "OPT": ("opt", {"tie_word_embeddings": False}),
    "OLMo 1": ("olmo", {}),
    "OLMo 1, tied": ("olmo", {"tie_word_embeddings": True}),
    "Nemotron": ("nemotron", HALF),
    "Arcee": ("arcee", {}),
    "Helium": ("helium", {}),
    "CWM": ("cwm", {}),
    "Ministral": ("ministral", {}),
    "EXAONE 4": ("exaone4", {}),
    "EXAONE 4, no windows": ("exaone4", {"sliding_window": None, "layer_types": [FULL] * 3}),
    "VaultGemma": ("vaultgemma", {}),
    "GPT-BigCode": ("gpt_bigcode", {}),
    "Granite-MoE, shared expert": ("granitemoeshared", {}),
    "Seed-OSS": ("seed_oss", {"head_dim": 16}),
    "ERNIE 4.5": ("ernie4_5", {"tie_word_embeddings": False, "use_bias": True}),
    "Phi-2": ("phi", HALF),
    "Falcon-7B": ("falcon", {}),
    "Falcon-40B": ("falcon", FALCON_40B),
    "Falcon2-11B": ("falcon", FALCON_40B | {"num_ln_in_parallel_attn": 1}),
    "Command-R": ("cohere", {}),
    "Command R7B": ("cohere2", {}),
    "GPT-J": ("gptj", {}),
    "CodeGen": ("codegen", {}),
}
UPCYCLED = {
    "llama": "MixtralForCausalLM",
    "mistral": "MixtralForCausalLM",
    "phi3": "MixtralForCausalLM",
    "qwen2": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3MoeForCausalLM",
    "olmo2": "FlexOlmoForCausalLM",
    "granite": "GraniteMoeForCausalLM",
    "seed_oss": "Qwen2MoeForCausalLM",
}
"""The class that an upcycled model of each type leaves in; growlm's own for the others."""
SLOW = {
    *(name for name in FAMILIES if "tied" in name),
    "Mistral 0.3",
    "Phi-4",
    "Falcon-40B",
    "Falcon2-11B",
    "Command-R",
    "Command R7B",
    "GPT-J",
    "CodeGen",
    "StableLM 2",
    "Seed-OSS",
    "Nemotron",
    "Arcee",
    "Helium",
    "CWM",
    "Ministral",
    "EXAONE 4, no windows",
    "VaultGemma",
    "GPT-BigCode",
    "Granite-MoE, shared expert",
}
"""Families whose parts others have, too."""
each_family = pytest.mark.parametrize(
    ("family", "changes"),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, case in FAMILIES.items()
    ],
)
WIDEN_TWICE = Widen(scale_factor=2, noise_std=1e-3)
GROWTHS = {
    "upcycled": [Upcycle(num_experts=4)],
    "x1.5": [Widen(scale_factor=1.5, noise_std=1e-3)],
    "x2": [WIDEN_TWICE],
    "deeper": [Deepen(extra_layers=1, init="identity")],
    "all": [
        Upcycle(num_experts=4),
        Widen(scale_factor=1.5, noise_std=1e-3),
        Deepen(extra_layers=1, init="identity"),
    ],
}


@pytest.mark.parametrize(
    "growth",
    [
        pytest.param(name, marks=[] if name in ("x2", "all") else [pytest.mark.slow])
        for name in GROWTHS
    ],
)
@each_family
def test_grown_and_exported_it_computes_what_the_original_did(tmp_path, family, changes, growth):
    original = make(family, **changes)
    original.save_pretrained(tmp_path / "hf")
    to_growlm(tmp_path / "hf", tmp_path / "ours")

    model, record = load_model(tmp_path / "ours")
    operators = GROWTHS[growth]
    if model.config.is_moe:
        operators = [
            MultiplyExperts(noise_std=1e-3) if isinstance(operator, Upcycle) else operator
            for operator in operators
        ]
    if model.config.attention.qk_norm == "full":  # every head needs the same number of copies
        widen = Widen(scale_factor=1.5, new_channels="copies")
        with pytest.raises(UserError, match="set new_channels=copies and a whole scale_factor"):
            grow(model, [widen])
        operators = [WIDEN_TWICE if isinstance(each, Widen) else each for each in operators]
    grown = grow(model, operators)
    save_model(grown, tmp_path / "grown", record)
    done = to_huggingface(tmp_path / "grown", tmp_path / "out")

    own_class = done.class_name == "GrowLMForCausalLM"
    theirs = load(tmp_path / "out", **({"trust_remote_code": True} if own_class else {}))
    tokens = tokens_for(original.config)
    with torch.no_grad():
        assert (theirs(tokens).logits - original(tokens).logits).abs().max() <= 2e-5
    if growth == "upcycled" and not model.config.is_moe:
        assert done.class_name == UPCYCLED.get(family, "GrowLMForCausalLM")
    if growth in ("x2", "deeper"):  # their sizes change, and nothing else
        # Twice as many channels halve the gains before a tied head, and OLMo's class has none.
        has_other_gains = growth == "x2" and family == "olmo" and model.config.tie_embeddings
        assert own_class == has_other_gains


@pytest.mark.parametrize(
    "change", [*(pytest.param(n, marks=pytest.mark.slow) for n in "01"), "2", "fresh channels"]
)
def test_a_class_without_gains_is_left_once_a_gain_is_not_one(tmp_path, change):
    original = make("olmo")
    original.save_pretrained(tmp_path / "hf")
    to_growlm(tmp_path / "hf", tmp_path / "ours")
    model, record = load_model(tmp_path / "ours")
    if change == "fresh channels":
        model = grow(model, [Widen(scale_factor=2)])
    else:
        block = model.blocks[1]
        norms = block.attention_norm, block.feed_forward_norm, model.final_norm
        norms[int(change)].weight.data[3] += 0.5
    save_model(model, tmp_path / "trained", record)

    done = to_huggingface(tmp_path / "trained", tmp_path / "out")

    assert done.class_name == "GrowLMForCausalLM"
    theirs, tokens = load(tmp_path / "out", trust_remote_code=True), tokens_for(original.config)
    with torch.no_grad():
        assert (theirs(tokens).logits - model(tokens)).abs().max() <= 2e-5


@each_family
def test_cached_greedy_texts_are_equal(tmp_path, family, changes):
    theirs = make(family, dtype=torch.float64, **changes)
    theirs.save_pretrained(tmp_path / "hf")
    to_growlm(tmp_path / "hf", tmp_path / "ours")
    model = load_model(tmp_path / "ours")[0].eval()
    prompt = tokens_for(theirs.config, batch=1, time=9)
    with torch.no_grad(), precision(torch.float64):
        # Early releases of 5 keep the cache when a text crosses longrope's original length.
        settings = {"use_cache": "original_max_position_embeddings" not in changes}
        expected = theirs.generate(
            prompt, max_new_tokens=12, do_sample=False, pad_token_id=0, **settings
        )
    (found,) = generate(model, prompt.tolist(), 12, Sampling(temperature=0))
    assert list(found.tokens) == expected[0, 9:].tolist()
