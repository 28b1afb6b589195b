"""Small models made by transformers, and what tests ask of them."""

import json
import logging
import warnings
from contextlib import contextmanager

import torch
import transformers
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM

from growlm.checkpoint.checkpoint_folder import read_model
from growlm.huggingface import HuggingFaceTensors
from growlm.runtime.torchao_notices import suppress_torchao_notices

with suppress_torchao_notices():  # before the first test needs a model class
    import transformers.modeling_utils
with warnings.catch_warnings():  # in 5.6 it uses torch.jit.script
    warnings.simplefilter("ignore", DeprecationWarning)
    import transformers.models.gpt_bigcode.modeling_gpt_bigcode

transformers.logging.disable_progress_bar()

SHAPE = {
    "vocab_size": 31,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "mixtral": transformers.MixtralConfig,
    "gpt_neox": transformers.GPTNeoXConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "qwen3_moe": transformers.Qwen3MoeConfig,
    "qwen2_moe": transformers.Qwen2MoeConfig,
    "gemma": transformers.GemmaConfig,
    "gemma2": transformers.Gemma2Config,
    "gemma3_text": transformers.Gemma3TextConfig,
    "phi3": transformers.Phi3Config,
    "olmo2": transformers.Olmo2Config,
    "olmo3": transformers.Olmo3Config,
    "olmoe": transformers.OlmoeConfig,
    "flex_olmo": transformers.FlexOlmoConfig,
    "gpt2": transformers.GPT2Config,
    "smollm3": transformers.SmolLM3Config,
    "granite": transformers.GraniteConfig,
    "granitemoe": transformers.GraniteMoeConfig,
    "glm": transformers.GlmConfig,
    "glm4": transformers.Glm4Config,
    "ernie4_5": transformers.Ernie4_5Config,
    "phi": transformers.PhiConfig,
    "falcon": transformers.FalconConfig,
    "cohere": transformers.CohereConfig,
    "cohere2": transformers.Cohere2Config,
    "gptj": transformers.GPTJConfig,
    "codegen": transformers.CodeGenConfig,
    "starcoder2": transformers.Starcoder2Config,
    "stablelm": transformers.StableLmConfig,
    "opt": transformers.OPTConfig,
    "olmo": transformers.OlmoConfig,
    "seed_oss": transformers.SeedOssConfig,
    "nemotron": transformers.NemotronConfig,
    "arcee": transformers.ArceeConfig,
    "helium": transformers.HeliumConfig,
    "cwm": transformers.CwmConfig,
    "ministral": transformers.MinistralConfig,
    "exaone4": transformers.Exaone4Config,
    "vaultgemma": transformers.VaultGemmaConfig,
    "gpt_bigcode": transformers.GPTBigCodeConfig,
    "granitemoeshared": transformers.GraniteMoeSharedConfig,
}
"""The config class of each model type."""
GROUPED = {"num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
WINDOW, FULL = "sliding_attention", "full_attention"
MIXED = {"sliding_window": 7, "layer_types": [WINDOW, WINDOW, FULL]}
MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}
"""Granite's flags."""
FIXED = {
    "llama": {},
    "mistral": {"sliding_window": None, "num_key_value_heads": 2},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2},
    "gpt_neox": {"use_parallel_residual": False},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "qwen3_moe": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "moe_intermediate_size": 24,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
    },
    "qwen2_moe": GROUPED
    | EXPERTS
    | {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
    "gemma": GROUPED | {"head_dim": 8},
    "gemma2": GROUPED | {"head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 12},
    "gemma3_text": GROUPED | MIXED | {"head_dim": 8, "query_pre_attn_scalar": 12},
    "phi3": GROUPED,
    "olmo2": GROUPED,
    "olmo3": GROUPED | MIXED,
    "olmoe": GROUPED | EXPERTS,
    "flex_olmo": GROUPED | EXPERTS,
    "gpt2": dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
    "smollm3": GROUPED | {"no_rope_layer_interval": 2},
    "granite": GROUPED | MULTIPLIERS,
    "granitemoe": GROUPED | MULTIPLIERS | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "glm": GROUPED | {"head_dim": 8},
    "glm4": GROUPED | {"head_dim": 8},
    "ernie4_5": GROUPED | {"head_dim": 8},
    "phi": GROUPED,
    "falcon": {"ffn_hidden_size": 48},
    "cohere": GROUPED,
    "cohere2": GROUPED | MIXED,
    "gptj": {"n_inner": 48, "rotary_dim": 4},
    "codegen": {"n_inner": 48, "rotary_dim": 4},
    "starcoder2": GROUPED,
    "stablelm": GROUPED,
    "opt": {"ffn_dim": 48, "dropout": 0.0},
    "olmo": GROUPED,
    "seed_oss": GROUPED
    | {"head_dim": 8}
    | dict.fromkeys(("attention_dropout", "residual_dropout"), 0.0),
    "nemotron": GROUPED,
    "arcee": GROUPED,
    "helium": GROUPED | {"head_dim": 8},
    "cwm": GROUPED | MIXED | {"head_dim": 8, "bos_token_id": 0},
    "ministral": GROUPED | MIXED | {"head_dim": 8},
    "exaone4": GROUPED | MIXED,
    "vaultgemma": GROUPED | MIXED | {"head_dim": 8, "query_pre_attn_scalar": 12},
    "gpt_bigcode": dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
    "granitemoeshared": GROUPED
    | MULTIPLIERS
    | {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 40},
}
NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
"""No special tokens: some classes' defaults lie beyond the small vocabulary."""
ATTENTION = dict.fromkeys(("gemma2", "vaultgemma", "gptj", "codegen"), "eager")
"""The implementation of attention of each family: no other bounds Gemma 2's scores, and the first releases of 5
have no other for GPT-J and CodeGen."""
SMALL_SHARDS = "20KB"
PARTLY_ROTATED = ("gpt_neox", "phi3", "glm", "glm4", "phi", "stablelm", "nemotron")
"""The families whose classes can rotate a part of each head."""


def rope(family, theta=10000.0):
    """The keys of transformers 5 for plain rotary positions on whole heads."""
    if family == "olmo3":  # in releases with one set of angles for all blocks and in later ones
        return {"rope_theta": 500000.0}
    if family in ("gpt2", "gpt_bigcode", "opt", "gptj", "codegen", "gemma3_text"):  # no such key
        return {}
    part = {"partial_rotary_factor": 1.0} if family in PARTLY_ROTATED else {}
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta} | part}


def longrope(original):
    """Scaling with a divisor for each of the four frequencies."""
    factors = {"short_factor": [1.0, 1.1, 1.3, 2.0], "long_factor": [1.0, 2.0, 4.0, 9.0]}
    return {
        "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **factors}
        | {"original_max_position_embeddings": original, "partial_rotary_factor": 1.0},
        "original_max_position_embeddings": original,
    }


class Double(TorchFunctionMode):
    """transformers computes norms, softmax and angles in fp32 whatever the model's type; in here, in fp64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            return args[0].double()
        args = [torch.float64 if each is torch.float32 else each for each in args]
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


@contextmanager
def precision(dtype):
    """What a model of this type is compared in."""
    if dtype is torch.float64:
        with Double():
            yield
    else:
        yield


def make(family, seed=0, dtype=torch.float32, **changes):
    """A model with every parameter away from its initial value."""
    fields = SHAPE | NO_TOKENS | rope(family) | FIXED[family] | changes
    config = CONFIGS[family](**fields, dtype=dtype)
    config._attn_implementation = ATTENTION.get(family, "sdpa")
    config._experts_implementation = "eager"
    torch.manual_seed(seed)
    with precision(dtype):
        model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def ours(folder):
    """The model of a Hugging Face folder as ours."""
    tensors = HuggingFaceTensors(folder)
    return read_model(tensors.config, tensors).eval()


def load(folder, dtype="auto", **settings):
    """A folder's model by transformers, which must find all that it wants and nothing else, in silence."""
    warned = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warned.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        settings.setdefault("attn_implementation", ATTENTION.get(_family_of(folder)))
        with precision(dtype):
            model, info = AutoModelForCausalLM.from_pretrained(
                folder, output_loading_info=True, dtype=dtype, **settings
            )
    finally:
        logger.removeHandler(handler)
    assert not warned
    assert not any(info.values()), info
    model.config._experts_implementation = "eager"  # the others know no fp64
    return model.eval()


def _family_of(folder):
    return json.loads((folder / "config.json").read_text())["model_type"]


def tokens_for(config, batch=2, time=24, seed=1):
    generator = torch.Generator().manual_seed(seed)
    length = min(time, config.max_position_embeddings)
    return torch.randint(config.vocab_size, (batch, length), generator=generator)


def assert_same_function(our_model, their_model, tolerance):
    """Equal logits, and logits that are not all small."""
    dtype = next(their_model.parameters()).dtype
    tokens = tokens_for(their_model.config)
    with torch.no_grad(), precision(dtype):
        expected = their_model(tokens).logits
    with torch.no_grad():
        found = our_model(tokens)
    assert found.dtype == dtype
    assert expected.abs().max() > 0.1
    assert (found - expected).abs().max() <= tolerance


TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
