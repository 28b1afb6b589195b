"""What a transformers model keeps when it grows in memory, and which ones are refused."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers import dynamic_module_utils

from growlm.growth import Deepen, MultiplyExperts, Upcycle, Widen, build_growth_map, grow
from growlm.huggingface.families.llama import MIXTRAL
from growlm.huggingface.live import live_growth
from growlm.runtime.errors import UserError
from tests.huggingface.hf_models import make, tokens_for

UPCYCLE = [Upcycle(num_experts=4)]


@pytest.fixture(scope="module")
def llama():
    return make("llama")


@pytest.fixture
def model(llama):
    return copy.deepcopy(llama)


def checkpoint_activations(model, **options):
    """By the name that this release of transformers does not warn of."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)(options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_precision(model, dtype):
    grown = grow(model.to(dtype), [*UPCYCLE, Widen(scale_factor=2)])
    assert {parameter.dtype for parameter in grown.parameters()} == {dtype}
    assert grown.config.dtype == dtype
    buffer, before = (m.get_buffer("model.rotary_emb.inv_freq") for m in (grown, model))
    assert buffer.dtype == before.dtype
    assert torch.equal(buffer, before)


def test_the_precision_of_each_tensor(model):
    model.to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = parameter.data.float()
    grown = grow(model, UPCYCLE)
    for name, parameter in grown.named_parameters():
        assert parameter.dtype == (torch.float32 if "norm" in name else torch.bfloat16), name
    assert grown.config.dtype == grown.dtype == torch.bfloat16


def test_which_parameters_are_trained(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" not in name and "embed" not in name)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)  # fused with the frozen gate
    model.train()
    grown = grow(model, UPCYCLE)
    assert grown.training
    frozen = {name for name, parameter in grown.named_parameters() if not parameter.requires_grad}
    experts = {f"model.layers.{i}.mlp.experts" for i in range(3)}
    expected = {f"{name}.{part}" for name in experts for part in ("gate_up_proj", "down_proj")}
    expected.remove("model.layers.0.mlp.experts.gate_up_proj")
    assert frozen == {"model.embed_tokens.weight", *expected}


def test_zeros_that_a_class_needs_are_not_trained():
    grown = grow(make("qwen2"), UPCYCLE)
    frozen = {name for name, parameter in grown.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name in grown.state_dict() if "shared_expert" in name}
    again = grow(grown, [MultiplyExperts(noise_std=1e-3)])
    assert type(again) is type(grown)


def test_the_config(model):
    settings = {"attention_dropout": 0.1, "initializer_range": 0.5, "use_cache": False}
    settings |= {"eos_token_id": 5, "pad_token_id": 6, "id2label": {0: "a"}, "my_note": "mine"}
    for key, value in settings.items():
        setattr(model.config, key, value)
    model.config._attn_implementation = "eager"
    model.config.name_or_path = "some/model"
    model.generation_config.max_new_tokens = 7
    for operators, heads in ((UPCYCLE, 4), ([Widen(scale_factor=2)], 8)):
        grown = grow(model, operators)
        assert {key: getattr(grown.config, key) for key in settings} == settings
        assert grown.config.num_attention_heads == heads
        assert grown.config.architectures == [type(grown).__name__]
        assert grown.config._attn_implementation == "eager"
        assert grown.config.name_or_path == "some/model"
        assert grown.generation_config.max_new_tokens == 7
        assert grown.generation_config is not model.generation_config
    assert model.config.num_attention_heads == 4
    grown = grow(make("mixtral"), [Deepen(extra_layers=1)])
    assert grown.config._experts_implementation == "eager"


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_tied_embeddings(family):
    grown = grow(make(family, tie_word_embeddings=True), [Widen(scale_factor=2)])
    assert grown.config.tie_word_embeddings
    assert grown.get_output_embeddings().weight is grown.get_input_embeddings().weight
    assert isinstance(grown.get_input_embeddings().weight, nn.Parameter)


def test_resized_embeddings(model):
    model.resize_token_embeddings(40, mean_resizing=False)
    grown = grow(model, UPCYCLE)
    assert grown.config.vocab_size == len(grown.lm_head.weight) == 40
    tokens = tokens_for(model.config)
    with torch.no_grad():
        assert (grown(tokens).logits - model(tokens).logits).abs().max() <= 1e-5


def test_checkpointing_of_activations(model):
    model.train()
    checkpoint_activations(model, use_reentrant=False, preserve_rng_state=False)
    model.model.layers[1].gradient_checkpointing = False
    grown = grow(model, [*UPCYCLE, Deepen(extra_layers=3, placement="stack", init="copy")])
    flags = [layer.gradient_checkpointing for layer in grown.model.layers]
    assert flags == [True, False, True] * 2
    function = grown.model.layers[0]._gradient_checkpointing_func
    assert isinstance(function, partial)
    assert function.keywords == {"use_reentrant": False, "preserve_rng_state": False}
    tokens = tokens_for(model.config)
    grown(tokens, labels=tokens).loss.backward()
    assert all(p.grad is not None for p in grown.model.layers[0].self_attn.parameters())


def test_it_saves_loads_and_grows_again(model, tmp_path):
    grown = grow(model, UPCYCLE)
    grown.save_pretrained(tmp_path / "hf")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert type(again) is type(grown)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, grown.state_dict()[name])
    twice = grow(grown, [Widen(scale_factor=2)])
    tokens = tokens_for(model.config)
    with torch.no_grad():
        assert (twice(tokens).logits - model(tokens).logits).abs().max() <= 1e-5
        twice.generate(tokens[:1, :4], max_new_tokens=2, do_sample=False, pad_token_id=0)


def test_a_router_that_no_class_has(model, tmp_path, monkeypatch):
    grown = grow(model, [Upcycle(num_experts=4, router_init="zeros")])
    assert type(grown).__name__ == "GrowLMForCausalLM"
    assert grown.config.routing["tie_breaking"]
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    grown.save_pretrained(tmp_path / "hf")
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", trust_remote_code=True
    )
    tokens = tokens_for(model.config)
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, grown(tokens).logits)
    assert type(grow(again, [Deepen(extra_layers=1)])) is type(grown)


def test_a_key_that_only_the_other_class_reads(model):
    """Llama ignores a window; Mixtral does not."""
    model.config.sliding_window = 3
    model.config.router_jitter_noise = 0.5
    grown = grow(model, UPCYCLE)
    assert grown.config.sliding_window is None
    assert grown.config.router_jitter_noise == 0.0


class MyLlama(transformers.LlamaForCausalLM):
    """A class of a user's own may compute anything."""


class Peft(nn.Module):
    """As PEFT's models: it forwards what it does not have to the model that it holds."""

    def __init__(self, model):
        super().__init__()
        self.base_model = model

    @property
    def config(self):
        return self.base_model.config


Peft.__module__, Peft.__qualname__ = "peft.peft_model", "PeftModel"


def with_adapters(model):
    linear = model.model.layers[0].self_attn.q_proj
    model.model.layers[0].self_attn.q_proj = nn.ModuleDict(
        {"base_layer": linear, "lora_A": nn.Linear(32, 2)}
    )
    return model


def quantized(model):
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    return model


def parted(model):
    model.config.tie_word_embeddings = True
    return model


def partly_on_meta(model):
    model.model.layers[1].to("meta")
    return model


def scaled_dynamically(model):
    model.config.rope_parameters["rope_type"] = "dynamic"
    return model


def tiny_t5(model):
    sizes = {"vocab_size": 9, "d_model": 8, "d_ff": 8, "num_layers": 1, "num_heads": 1, "d_kv": 8}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))


REFUSED = {
    "no head": (lambda model: model.model, "model=LlamaModel: only LlamaForCausalLM itself"),
    "another head": (
        lambda model: transformers.LlamaForSequenceClassification(model.config),
        "model=LlamaForSequenceClassification: only .* AutoModelForCausalLM",
    ),
    "a class of one's own": (lambda model: MyLlama(model.config), "model=MyLlama: only"),
    "an encoder": (tiny_t5, "model.config.model_type=t5: an encoder beside the decoder"),
    "positions": (scaled_dynamically, "^model.config.rope_.*=dynamic"),
    "PEFT": (Peft, "model=Peft: holds adapters; .* with model.merge_and_unload"),
    "adapters": (with_adapters, "model=LlamaForCausalLM: holds adapters"),
    "quantized": (quantized, "model=LlamaForCausalLM: is quantized; load it in bfloat16"),
    "in eight bits": (
        lambda model: model.to(torch.float8_e4m3fn),
        r"has model.embed_tokens.weight of another kind than .* \(torch.float8_e4m3fn\)",
    ),
    "offloaded": (
        partly_on_meta,
        r"has no values for model.layers.1.self_attn.q_proj.weight: .* without device_map",
    ),
    "not tied": (parted, "tie_word_embeddings is true, but lm_head.weight differs"),
    "DataParallel": (nn.DataParallel, "wraps the model; grow model.module"),
    "compiled": (
        lambda model: torch.compile(model, backend="eager"),
        "wraps the model; grow model._orig_mod",
    ),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "compiled" else [])
        for name in REFUSED
    ],
)
def test_what_cannot_grow_is_refused_by_name(model, case):
    change, message = REFUSED[case]
    changed = change(model)
    with pytest.raises(UserError, match=message):
        grow(changed, UPCYCLE)


@pytest.mark.parametrize("given", ["meta-llama/Llama-3.2-1B", Path("a_folder"), None, {}])
def test_what_is_no_model_is_refused(given):
    with pytest.raises(UserError, match=r"model=.*: is no torch.nn.Module; load the model first"):
        grow(given, UPCYCLE)


def test_names_that_growlm_does_not_know(model, monkeypatch):
    renamed = replace(
        MIXTRAL, tensor_layouts=MIXTRAL.tensor_layouts[:1]
    )  # of files, not of a model
    monkeypatch.setattr(live_growth, "choose_architecture", lambda *_: renamed)
    with pytest.raises(UserError, match="model=MixtralForCausalLM: has tensors of other names"):
        grow(model, UPCYCLE)


def test_a_class_without_checkpointing():
    model = make("gpt2")
    checkpoint_activations(model)
    if not grow(make("gpt2"), UPCYCLE).supports_gradient_checkpointing:
        with pytest.raises(UserError, match=r"gradient checkpointing .*GrowLMForCausalLM"):
            grow(model, UPCYCLE)


def test_others_name_the_function_that_takes_it(model):
    with pytest.raises(UserError, match=r"only grow\(model, operators\) and the checks take it"):
        build_growth_map(model, UPCYCLE)
    with pytest.raises(UserError, match="must be a list of operators"):
        grow(model, UPCYCLE[0])
    with pytest.raises(UserError, match="no experts to multiply"):
        grow(model, [MultiplyExperts()])
