"""Models that transformers has no class for: its Auto classes load growlm's own, which works there."""

import subprocess
import sys

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, dynamic_module_utils

from growlm.checkpoint import load_model, save_model
from growlm.huggingface import to_growlm, to_huggingface, transformers_model
from growlm.model.keyed_rng import keyed_generator
from tests.huggingface.hf_models import TOLERANCES, Double, assert_same_function, load, tokens_for
from tests.model.tiny_models import assert_same_state, build, tiny_config

EXPERTS = {"num_experts": 4, "top_k": 2}
SHARED_NORM = {
    "norm": {"kind": "rmsnorm", "parallel_residual": True, "shared": True},
    "embedding": {"head_bias": True},
}
WITHOUT_A_CLASS = {
    "LayerNorm experts": tiny_config(**EXPERTS),
    "loss-free balancing": tiny_config(**EXPERTS, router_bias_step=0.01, tie_embeddings=False),
    "ties broken": tiny_config(num_experts=4, top_k=3, router_tie_breaking=True),
    "no biases": tiny_config(bias=False),
    "grouped heads, interleaved": tiny_config(n_kv_heads=2, rope={"interleaved": True}),
    "narrow heads": tiny_config(head_dim=2, norm={"parallel_residual": True}),
    "RMSNorm and GELU": tiny_config(norm="rmsnorm", bias=False, tie_embeddings=False),
    "shared norm, bias of the head": tiny_config(**SHARED_NORM, **EXPERTS),
    "SwiGLU experts with biases": tiny_config("llama", **EXPERTS, bias=True),
}


@pytest.fixture(autouse=True)
def _own_modules(tmp_path, monkeypatch):
    """transformers copies a folder's modules into its cache."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def exported(tmp_path, config, dtype=torch.float32, **settings):
    model = build(config, std=0.2, dtype=dtype)
    for name, buffer in model.named_buffers():
        buffer += 0.1 * torch.randn(buffer.shape, generator=keyed_generator(name))
    save_model(model, tmp_path / "ours", {"phase": "moe"})
    done = to_huggingface(tmp_path / "ours", tmp_path / "hf", **settings)
    assert done.class_name == "GrowLMForCausalLM"
    return model


@pytest.mark.parametrize("config", WITHOUT_A_CLASS.values(), ids=WITHOUT_A_CLASS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_loaded_by_the_auto_class(tmp_path, config, dtype):
    model = exported(tmp_path, config, dtype)
    theirs = load(tmp_path / "hf", dtype=dtype, trust_remote_code=True)
    assert type(theirs).__name__ == "GrowLMForCausalLM"
    assert_same_function(model, theirs, TOLERANCES[dtype])


@pytest.mark.parametrize("config", WITHOUT_A_CLASS.values(), ids=WITHOUT_A_CLASS)
def test_own_class_and_back_as_it_was(tmp_path, config):
    model = exported(tmp_path, config)
    to_growlm(tmp_path / "hf", tmp_path / "back")
    again, record = load_model(tmp_path / "back")
    assert again.config == model.config
    assert record["phase"] == "moe"
    assert_same_state(again.state_dict(), model.state_dict())


def test_a_model_that_has_a_class_goes_this_way_too(tmp_path):
    model = exported(tmp_path, tiny_config("llama"), architecture="growlm")
    theirs = load(tmp_path / "hf", trust_remote_code=True)
    assert_same_function(model, theirs, 1e-5)


def test_saved_by_transformers_it_comes_back(tmp_path):
    model = exported(tmp_path, tiny_config(**EXPERTS))
    theirs = load(tmp_path / "hf", trust_remote_code=True)
    theirs.save_pretrained(tmp_path / "saved", max_shard_size="5KB")
    to_growlm(tmp_path / "saved", tmp_path / "back")
    assert_same_state(load_model(tmp_path / "back")[0].state_dict(), model.state_dict())


def test_loss_gradients_and_padding(tmp_path):
    model = exported(tmp_path, tiny_config(**EXPERTS), torch.float64).train()
    theirs = load(tmp_path / "hf", dtype=torch.float64, trust_remote_code=True).train()
    tokens = tokens_for(theirs.config)
    with Double():
        loss = theirs(tokens, labels=tokens).loss
        loss.backward()
    expected = model.loss(tokens)
    expected.backward()
    assert abs(loss - expected) <= 1e-10
    for name, parameter in model.named_parameters():
        found = theirs.get_parameter(f"model.{name}").grad
        assert (found - parameter.grad).abs().max() <= 1e-10
    kept = theirs(tokens, logits_to_keep=3).logits
    assert (kept - theirs(tokens).logits[:, -3:]).abs().max() <= 1e-12


def test_a_step_of_several_batches_is_the_step_of_one(tmp_path):
    """As `Trainer` accumulates: each batch's losses are summed and divided by the tokens of all."""
    exported(tmp_path, tiny_config(**EXPERTS), torch.float64)
    theirs = load(tmp_path / "hf", dtype=torch.float64, trust_remote_code=True).train()
    tokens = tokens_for(theirs.config, batch=4, time=9)
    with Double():
        theirs(tokens, labels=tokens).loss.backward()
        whole = {name: parameter.grad.clone() for name, parameter in theirs.named_parameters()}
        theirs.zero_grad()
        for text in tokens.split(1):
            theirs(text, labels=text, num_items_in_batch=torch.tensor(4 * 8)).loss.backward()
    for name, parameter in theirs.named_parameters():
        assert (parameter.grad - whole[name]).abs().max() <= 1e-12


@torch.no_grad()
def test_what_the_model_does_not_do_is_refused(tmp_path):
    exported(tmp_path, tiny_config(**EXPERTS))
    theirs = load(tmp_path / "hf", trust_remote_code=True)
    tokens = tokens_for(theirs.config, batch=2, time=6)
    plain = theirs(tokens, output_hidden_states=False, output_attentions=None).logits
    unknown = {"output_router_logits": True, "token_type_ids": torch.ones(2, 6), "kv_store": {}}
    for name, value in unknown.items():
        with pytest.raises(ValueError, match=f"{name}=.* has no such argument"):
            theirs(tokens, **{name: value})
    with pytest.raises(ValueError, match="cache_position: must count"):
        theirs(tokens, cache_position=torch.arange(1, 7))
    for positions in (3 * torch.arange(6), torch.tensor([[0, 1, 2, 0, 1, 2]] * 2), torch.arange(5)):
        with pytest.raises(ValueError, match="position_ids"):
            theirs(tokens, position_ids=positions)
    assert torch.equal(theirs(tokens, position_ids=torch.arange(6)).logits, plain)
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 1, 0, 1, 2, 3]])
    padded = theirs(tokens, attention_mask=mask, position_ids=positions).logits
    assert torch.equal(padded, theirs(tokens, attention_mask=mask).logits)


@torch.no_grad()
def test_padding_on_either_side(tmp_path):
    model = exported(tmp_path, tiny_config(**EXPERTS), torch.float64)
    theirs = load(tmp_path / "hf", dtype=torch.float64, trust_remote_code=True)
    tokens = tokens_for(theirs.config, batch=4, time=9)
    lengths = {0: slice(0, 9), 1: slice(4, 9), 2: slice(0, 6), 3: slice(2, 5)}
    mask = torch.zeros_like(tokens)
    for row, text in lengths.items():
        mask[row, text] = 1
    logits = theirs(tokens, attention_mask=mask).logits
    for row, text in lengths.items():
        alone = model(tokens[row : row + 1, text])[0]
        assert (logits[row, text] - alone).abs().max() <= 1e-12


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_a_cache_changes_nothing(tmp_path, padded):
    exported(tmp_path, tiny_config(n_kv_heads=2, num_experts=4), torch.float64)
    theirs = load(tmp_path / "hf", dtype=torch.float64, trust_remote_code=True)
    tokens = tokens_for(theirs.config, batch=3, time=12)
    mask = torch.ones_like(tokens)
    mask[1, :3] = mask[2, :7] = int(not padded)
    expected = theirs(tokens, attention_mask=mask).logits
    found, cache = [], None
    for start, stop in ((0, 5), (5, 6), (6, 10), (10, 12)):
        part = {"attention_mask": mask[:, :stop], "past_key_values": cache, "use_cache": True}
        output = theirs(tokens[:, start:stop], **part)
        cache = output[transformers_model.CACHE_FIELD]
        found.append(output.logits)
    difference = (torch.cat(found, dim=1) - expected).abs() * mask.unsqueeze(-1)
    assert cache.get_seq_length() == 12
    assert difference.max() <= 1e-12
    with pytest.raises(ValueError, match="65 tokens exceed max_seq_len=64"):
        theirs(tokens_for(theirs.config, batch=3, time=53), past_key_values=cache)
    with pytest.raises(ValueError, match="must be a decoder's Cache, not a tuple"):
        theirs(tokens, past_key_values=((), ()))


@pytest.fixture
def generating(tmp_path):
    """An exported mixture in fp64, where near ties do not decide which token comes, and what generates with it."""
    model = exported(tmp_path, tiny_config(**EXPERTS), torch.float64)
    theirs = load(tmp_path / "hf", dtype=torch.float64, trust_remote_code=True)
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}

    @torch.no_grad()
    def generate(text, **changes):
        return theirs.generate(text, **(settings | changes))

    generate.model, generate.theirs, generate.folder = model, theirs, tmp_path / "hf"
    return generate


@torch.no_grad()
def test_generate_takes_the_likeliest_token_each_time(generating):
    text = expected = tokens_for(generating.theirs.config, batch=1, time=5)
    for _ in range(12):
        expected = torch.cat([expected, generating.model(expected)[:, -1:].argmax(-1)], dim=-1)
    assert torch.equal(generating(text), expected)
    assert torch.equal(generating(text, use_cache=False), expected)
    assert generating(text, max_new_tokens=3, do_sample=True).shape == (1, 8)


def test_generate_reads_each_token_once(generating):
    """A cache that the model overlooks gives other text, or none and much work."""
    lengths = []
    embedding = generating.theirs.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    generating(tokens_for(generating.theirs.config, batch=1, time=5))
    assert lengths == [5, *[1] * 11]


@pytest.mark.parametrize("beams", [1, 2])
def test_generate_in_a_batch_as_alone(generating, beams):
    texts = tokens_for(generating.theirs.config, batch=2, time=8)
    mask = torch.ones_like(texts)
    mask[1, :5] = 0
    for use_cache in (True, False):
        settings = {"num_beams": beams, "use_cache": use_cache}
        together = generating(texts, attention_mask=mask, **settings)
        for row, text in enumerate((texts[:1], texts[1:, 5:])):
            alone = generating(text, **settings)
            assert torch.equal(together[row, -alone.shape[1] :], alone[0])


def test_generate_with_an_assistant_as_without(generating):
    assistant = load(generating.folder, dtype=torch.float64, trust_remote_code=True)
    with torch.no_grad():  # another model, so that some of its proposals are refused
        for parameter in assistant.parameters():
            parameter += 0.05 * torch.randn(
                parameter.shape, generator=keyed_generator("assistant"), dtype=torch.float64
            )
    text = tokens_for(generating.theirs.config, batch=1, time=5)
    assert torch.equal(generating(text, assistant_model=assistant), generating(text))


@torch.no_grad()
def test_both_names_of_the_cache(generating):
    theirs = generating.theirs
    tokens = tokens_for(theirs.config, batch=1, time=6)
    expected = theirs(tokens).logits
    for name in ("cache", "past_key_values"):
        cache = transformers.DynamicCache()
        theirs(tokens[:, :4], **{name: cache})
        assert cache.get_seq_length() == 4
        rest = theirs(tokens[:, 4:], **{name: cache})
        assert rest[transformers_model.CACHE_FIELD] is cache
        assert (rest.logits - expected[:, 4:]).abs().max() <= 1e-12
    with pytest.raises(ValueError, match="are the same argument"):
        theirs(tokens, cache=cache, past_key_values=transformers.DynamicCache())


def test_without_trust_nothing_is_run(tmp_path):
    exported(tmp_path, tiny_config(**EXPERTS))
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=False)
    assert "growlm" not in transformers.CONFIG_MAPPING


def test_growlm_itself_does_not_need_transformers():
    code = "import growlm.convert, growlm.huggingface, sys; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
