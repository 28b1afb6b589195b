"""Small models made by transformers, and what tests ask of them."""

import logging
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
}
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
}
SMALL_SHARDS = "20KB"


def rope(family, theta=10000.0):
    """The keys of transformers 5 for plain rotary positions on whole heads."""
    part = {"partial_rotary_factor": 1.0} if family == "gpt_neox" else {}
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta} | part}


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
    config = CONFIGS[family](**(SHAPE | rope(family) | FIXED[family] | changes), dtype=dtype)
    config._attn_implementation, config._experts_implementation = "sdpa", "eager"
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
