"""growlm's own class does what tools ask of a model of transformers."""

import copy
import json

import pytest
import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, MistralConfig, StaticCache
from transformers.modeling_layers import GradientCheckpointingLayer

from growlm.checkpoint import load_model
from growlm.growth import Widen, grow
from growlm.huggingface import to_growlm, to_huggingface
from growlm.huggingface.transformers_model import CACHE_FIELD, GrowLMConfig, GrowLMForCausalLM
from growlm.model.axes import axes_table
from growlm.model.keyed_rng import keyed_generator
from tests.huggingface.hf_models import Double, tokens_for
from tests.huggingface.hf_models import make as make_theirs

SIZES = {
    "vocab_size": 29,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
KINDS = {
    "dense": {"tie_word_embeddings": False, "embedding": {"head_bias": True}},
    "mixture": EXPERTS | {"embedding": {"head_bias": True}},
    "windows": EXPERTS
    | {
        "attention": {"window": 3, "softcap": 5.0},
        "layers": {"attention": ["full", "window"]},
        "embedding": {"positions": "learned", "logit_softcap": 9.0, "head_bias": True},
    },
}


def make(dtype=torch.float64, **values):
    """A model away from its initial values."""
    model = GrowLMForCausalLM(GrowLMConfig(**SIZES | values))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=keyed_generator(name))
    return model.to(dtype).eval()


@pytest.fixture(scope="module", params=KINDS)
def shared(request):
    """A model that no test changes."""
    return make(**KINDS[request.param])


@pytest.fixture(params=["dense", "mixture"])
def model(request):
    return make(**KINDS[request.param])


def padded(config, batch=3, time=8):
    tokens, mask = tokens_for(config, batch, time), torch.ones(batch, time, dtype=torch.long)
    mask[1, :3], mask[2, 5:] = 0, 0
    return tokens, mask


def test_tokens_are_added_and_the_model_grows_with_them(model, tmp_path):
    tokens = tokens_for(model.config)
    before = model(tokens).logits
    model.resize_token_embeddings(31)
    assert model.config.vocab_size == model.model.config.vocab_size == 31
    after = model(tokens).logits
    assert (after[..., :29] - before).abs().max() <= 1e-12
    assert after.shape[-1] == 31
    model.save_pretrained(tmp_path / "saved")
    to_growlm(tmp_path / "saved", tmp_path / "ours")
    assert (load_model(tmp_path / "ours")[0](tokens) - after).abs().max() <= 1e-12
    grown = grow(model.model, [Widen(2.0)], seed=0)
    assert (grown(tokens) - after).abs().max() <= 1e-10
    theirs = grow(model, [Widen(2.0)], seed=0)
    assert type(theirs) is GrowLMForCausalLM
    assert (theirs(tokens).logits - after).abs().max() <= 1e-10
    head = theirs.get_output_embeddings().weight
    assert (head is theirs.get_input_embeddings().weight) == model.config.tie_word_embeddings


def test_embeddings_are_replaced(model):
    new = nn.Embedding(17, 16, dtype=torch.float64)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new
    head = nn.Linear(16, 17, bias=False, dtype=torch.float64)
    if model.config.tie_word_embeddings:
        assert model.get_output_embeddings().weight is new.weight
        assert "lm_head" in dict(model.named_modules())
        model.set_output_embeddings(model.get_output_embeddings())
        with pytest.raises(ValueError, match="tied to the embedding"):
            model.set_output_embeddings(head)
    else:
        model.set_output_embeddings(head)
        assert model.get_output_embeddings() is head
    assert model(torch.tensor([[3, 16]])).logits.shape == (1, 2, 17)
    assert axes_table(model.model)["embedding.weight"].shape == (17, 16)


def test_a_head_that_was_wrapped_is_called():
    """As LoRA wraps it: the weight alone is not the head."""
    model = make(**KINDS["dense"])
    tokens, head = tokens_for(model.config), model.get_output_embeddings()
    before = model(tokens).logits
    model.model.head = nn.Sequential(head, nn.LogSoftmax(-1))
    assert (model(tokens).logits - before.log_softmax(-1)).abs().max() <= 1e-12


@torch.no_grad()
def test_attentions_and_hidden_states(shared):
    tokens, mask = padded(shared.config)
    plain = shared(tokens, attention_mask=mask)
    assert plain.hidden_states is None
    assert plain.attentions is None
    inputs = {"attention_mask": mask, "output_attentions": True, "output_hidden_states": True}
    output = shared(tokens, **inputs)
    assert (output.logits - plain.logits).abs().max() <= 1e-12
    assert [each.shape for each in output.attentions] == [(3, 4, 8, 8)] * 2
    for weights in output.attentions:
        assert (weights.sum(-1) - 1).abs().max() <= 1e-12
        assert weights.triu(1).abs().max() == 0
        assert weights[1, :, 3:, :3].abs().max() == 0  # padding
    if shared.model.config.attention.window is not None:
        assert output.attentions[1].tril(-3).abs().max() == 0
        assert output.attentions[0].tril(-3).abs().max() > 0
    first, *_, last = output.hidden_states
    assert len(output.hidden_states) == 3
    assert torch.equal(shared._logits(last), output.logits)
    seen = shared.model.embed(tokens, (mask.cumsum(-1) - 1).clamp(min=0))
    assert torch.equal(first[mask.bool()], seen[mask.bool()])
    some = shared(tokens, attention_mask=mask, output_hidden_states=[0, -1]).hidden_states
    assert torch.equal(some[0], first)
    assert (some[2] - last).abs().max() <= 1e-12
    assert some[1] is None


@torch.no_grad()
def test_settings_of_the_config_are_the_defaults(shared):
    model, tokens = copy.deepcopy(shared), tokens_for(shared.config)
    assert model(tokens)[CACHE_FIELD].get_seq_length() == 24
    assert CACHE_FIELD not in model(tokens, use_cache=False)
    assert CACHE_FIELD not in model.train()(tokens)  # it would only keep memory
    model.eval()
    logits = model(tokens).logits
    model.set_attn_implementation("eager")
    assert (model(tokens, use_cache=False).logits - logits).abs().max() <= 1e-12
    model.config.output_attentions = model.config.output_hidden_states = True
    output = model(tokens)
    assert len(output.attentions) == 2
    assert len(output.hidden_states) == 3
    assert model(tokens, output_attentions=False).attentions is None
    model.config.use_cache = False
    assert CACHE_FIELD not in model(tokens)
    model.config.return_dict = False
    assert isinstance(model(tokens), tuple)


@torch.no_grad()
def test_the_kind_of_output(shared):
    tokens = tokens_for(shared.config)
    output = shared(tokens, labels=tokens, return_dict=None)  # as PEFT passes it on
    as_tuple = shared(tokens, labels=tokens, return_dict=False)
    assert torch.equal(as_tuple[0], output.loss)
    assert torch.equal(as_tuple[1], output.logits)
    assert [type(each) for each in as_tuple[2:]] == [DynamicCache]


@torch.no_grad()
def test_inputs_and_targets_of_other_kinds(shared):
    tokens, mask = padded(shared.config)
    rows = shared.get_input_embeddings()(tokens)
    expected = shared(tokens, attention_mask=mask).logits
    found = shared(inputs_embeds=rows, attention_mask=mask).logits
    assert torch.equal(found, expected)
    uncached = shared(tokens, attention_mask=mask, use_cache=False).logits
    assert (uncached - expected)[mask.bool()].abs().max() <= 1e-12
    for both in ({}, {"input_ids": tokens, "inputs_embeds": rows}):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            shared(**both)
    shifted = nn.functional.pad(tokens[:, 1:], (0, 1), value=-100)
    loss = shared(tokens, labels=tokens).loss
    assert torch.equal(shared(tokens, shift_labels=shifted).loss, loss)
    assert torch.equal(shared(tokens, shift_labels=shifted, labels=0 * tokens).loss, loss)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(3, 7\), not \(batch, 8\)"):
        shared(tokens, attention_mask=mask[:, 1:])
    with pytest.raises(ValueError, match=r"attention_mask has shape \(3, 1, 8, 8\)"):
        shared(tokens, attention_mask=torch.ones(3, 1, 8, 8))


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_blocks_have_the_same_gradients(model, reentrant):
    tokens, mask = padded(model.config)
    model.train()

    def gradients():
        model.zero_grad()
        with Double():
            model(tokens, attention_mask=mask, labels=tokens).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected, calls = gradients(), []
    query = model.model.blocks[0].attention.query
    query.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{word}_checkpointing_enable")({"use_reentrant": reentrant})
    assert all(isinstance(block, GradientCheckpointingLayer) for block in model.model.blocks)
    found = gradients()
    assert len(calls) == 2
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-12
    assert CACHE_FIELD not in model(tokens, use_cache=True)
    with pytest.raises(ValueError, match="cannot be used with gradient checkpointing"):
        model(tokens, **{CACHE_FIELD: DynamicCache()})
    getattr(model, f"{word}_checkpointing_disable")()
    calls.clear()
    gradients()
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_router_stays_in_fp32(tmp_path, dtype):
    routing = {"bias_step": 0.01}
    model = make(torch.float32, **EXPERTS, routing=routing, tie_word_embeddings=False)
    for block in model.model.blocks:
        block.feed_forward.selection_bias.fill_(0.1)
    model.save_pretrained(tmp_path)
    loaded = GrowLMForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert loaded._keep_in_fp32_modules_strict == {"router", "selection_bias"}
    state = model.state_dict()
    for name, tensor in loaded.state_dict().items():
        is_kept = ".router." in name or name.endswith("selection_bias")
        assert tensor.dtype == (torch.float32 if is_kept else dtype), name
        assert torch.equal(tensor, state[name].to(tensor.dtype)), name
    logits = []
    router = loaded.model.blocks[0].feed_forward.router
    router.register_forward_hook(lambda _, inputs, output: logits.append(output.dtype))
    loaded(tokens_for(model.config))
    assert logits == [torch.float32]
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        made = GrowLMForCausalLM(model.config)
    finally:
        torch.set_default_dtype(default)
    assert {name: t.dtype for name, t in made.state_dict().items()} == {
        name: t.dtype for name, t in loaded.state_dict().items()
    }


def test_initial_values(tmp_path):
    """What a file lacks is drawn, with the config's width; nothing is left as the memory was."""
    values = EXPERTS | {"initializer_range": 0.5, "norm": {"gain_offset": 1.0, "kind": "rmsnorm"}}
    torch.manual_seed(3)
    model = GrowLMForCausalLM(GrowLMConfig(**SIZES | {"hidden_size": 32} | values))
    state = model.state_dict()
    assert 0.4 < state["model.embedding.weight"].std() < 0.6
    assert 0.2 < state["model.blocks.0.feed_forward.experts.down"].std() < 0.3  # 0.5 / sqrt(2 · 2)
    assert not state["model.final_norm.weight"].any()
    torch.manual_seed(4)
    other = GrowLMForCausalLM(model.config).state_dict()
    assert not torch.equal(other["model.embedding.weight"], state["model.embedding.weight"])
    del state["model.blocks.1.attention.query.weight"], state["model.blocks.1.attention.query.bias"]
    model.save_pretrained(tmp_path, state_dict=state)
    loaded, info = GrowLMForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    query = loaded.model.blocks[1].attention.query
    assert len(info["missing_keys"]) == 2
    assert 0.4 < query.weight.std() < 0.6
    assert not query.bias.any()
    assert loaded.config.initializer_range == 0.5


@torch.no_grad()
@pytest.mark.parametrize("way", ["greedy", "beams", "static", "embeddings", "lookup", "eager"])
def test_generate_in_every_way(shared, way):
    """The same text, with one token at a time or all of them again each time, padded or alone."""
    tokens = tokens_for(shared.config, batch=2, time=7)
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    settings = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    ways = {
        "beams": {"num_beams": 3},
        "static": {"cache_implementation": "static"},
        "lookup": {"prompt_lookup_num_tokens": 3, "eos_token_id": 28},  # transformers 5.6 needs one
    }
    changes = ways.get(way, {})
    settings |= {name: changes[name] for name in ("num_beams", "eos_token_id") if name in changes}
    expected = [
        shared.generate(text, use_cache=False, **settings)[0, text.shape[1] :]
        for text in (tokens[:1], tokens[1:, 4:])
    ]
    if way == "lookup":  # takes one text at a time
        found = shared.generate(tokens[:1], **settings | changes)[:, 7:]
    elif way == "embeddings":
        rows = shared.get_input_embeddings()(tokens)
        found = shared.generate(inputs_embeds=rows, attention_mask=mask, **settings)
    else:
        model = shared
        if way == "eager":
            model = copy.deepcopy(shared)
            model.set_attn_implementation("eager")
        found = model.generate(tokens, attention_mask=mask, **settings | changes)[:, 7:]
    for row, text in zip(found, expected, strict=False):
        assert torch.equal(
            row[: len(text)], text
        )  # transformers 5.6 may look up one token too many


@torch.no_grad()
def test_everything_that_generate_returns(shared):
    tokens = tokens_for(shared.config, batch=2, time=5)
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "output_scores": True}
    wanted = {"output_attentions": True, "output_hidden_states": True, "output_logits": True}
    output = shared.generate(tokens, return_dict_in_generate=True, **settings, **wanted)
    whole = shared(output.sequences, output_attentions=True, output_hidden_states=True)
    for step in range(4):
        width = 5 + step
        assert (output.logits[step] - whole.logits[:, width - 1]).abs().max() <= 1e-6  # in fp32
        for layer in range(2):
            weights = output.attentions[step][layer][..., -1, :]
            expected = whole.attentions[layer][:, :, width - 1, :width]
            assert (weights - expected).abs().max() <= 1e-12
        hidden = output.hidden_states[step][-1][:, -1]
        assert (hidden - whole.hidden_states[-1][:, width - 1]).abs().max() <= 1e-12


@torch.no_grad()
def test_a_static_cache_changes_nothing(shared):
    tokens, mask = padded(shared.config)
    mask[2] = 1
    expected = shared(tokens, attention_mask=mask).logits
    cache = StaticCache(config=shared.config, max_cache_len=20)
    found = []
    for start, stop in ((0, 5), (5, 6), (6, 8)):
        part = {"attention_mask": mask[:, :stop], CACHE_FIELD: cache}
        found.append(shared(tokens[:, start:stop], **part).logits)
    difference = (torch.cat(found, dim=1) - expected).abs() * mask.unsqueeze(-1)
    assert difference.max() <= 1e-12
    with pytest.raises(ValueError, match="must be a decoder's Cache, not a EncoderDecoderCache"):
        shared(tokens, **{CACHE_FIELD: EncoderDecoderCache(DynamicCache(), DynamicCache())})
    forgetful = DynamicCache(config=MistralConfig(num_hidden_layers=2, sliding_window=4))
    shared(tokens, **{CACHE_FIELD: forgetful})
    with pytest.raises(ValueError, match="the cache keeps 5 of 10 tokens; use one that keeps all"):
        shared(tokens[:, :2], **{CACHE_FIELD: forgetful})


@pytest.mark.parametrize("architecture", ["auto", "growlm"])
def test_the_width_of_initial_values_goes_through(tmp_path, architecture):
    make_theirs("mixtral", initializer_range=0.05).save_pretrained(tmp_path / "in")
    to_growlm(tmp_path / "in", tmp_path / "ours")
    to_huggingface(tmp_path / "ours", tmp_path / "out", architecture=architecture)
    to_growlm(tmp_path / "out", tmp_path / "again")
    to_huggingface(tmp_path / "again", tmp_path / "last")
    for folder in ("out", "last"):
        content = json.loads((tmp_path / folder / "config.json").read_text())
        assert content["initializer_range"] == 0.05
