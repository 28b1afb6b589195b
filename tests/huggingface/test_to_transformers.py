"""Models of ours, trained a little, as transformers loads them: no word of complaint, equal logits."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from growlm.checkpoint import load_model, save_model
from growlm.checkpoint import safetensors_io as tensor_files
from growlm.huggingface import to_growlm, to_huggingface
from growlm.huggingface.architectures import ARCHITECTURES, GROWLM
from growlm.huggingface.config_writing import can_represent, explain_own_class
from growlm.huggingface.families.llama_relatives import HELIUM
from growlm.huggingface.live.live_model import read_live_model
from growlm.model import ModelConfig
from growlm.runtime.errors import UserError
from tests.huggingface.hf_models import TOLERANCES, assert_same_function, load, make, tokens_for
from tests.model.tiny_models import assert_same_state, build, tiny_config

LLAMA = {"n_kv_heads": 2}
EXPERTS = {"num_experts": 4, "top_k": 2}
MIXED = {
    "attention": {"bias": "qkv"},
    "norm": {"kind": "rmsnorm"},
    "feed_forward": {"kind": "swiglu", "bias": False},
    "expert_d_ff": 8,
    "layers": {"mixture": [False, True]},
}
SHARED_NORM = {
    "norm": {"parallel_residual": True, "shared": True},
    "embedding": {"head_bias": True},
}
CLASSES = {
    "LlamaForCausalLM": ("llama", LLAMA),
    "LlamaForCausalLM, tied": ("llama", {"tie_embeddings": True}),
    "LlamaForCausalLM, untied": ("llama", {"tie_embeddings": False, "n_kv_heads": 1}),
    "LlamaForCausalLM, biases": ("llama", {"bias": True}),
    "MistralForCausalLM": ("llama", {"d_model": 18}),
    "MixtralForCausalLM": ("llama", LLAMA | EXPERTS),
    "MixtralForCausalLM, bias of zero": ("llama", EXPERTS | {"router_bias_step": 0.01}),
    "Qwen2MoeForCausalLM, dense blocks": ("llama", LLAMA | EXPERTS | MIXED),
    "GPTNeoXForCausalLM": ("default", {"tie_embeddings": False}),
    "GPTNeoXForCausalLM, tied": ("default", {}),
    "PhiForCausalLM, tied": ("default", SHARED_NORM),
    "Starcoder2ForCausalLM, narrow heads": ("default", {"n_kv_heads": 2, "head_dim": 2}),
}
each_class = pytest.mark.parametrize(("family", "changes"), CLASSES.values(), ids=CLASSES)


def trained(family, dtype=torch.float32, steps=3, **changes):
    """A model after a few steps of training, its normalisations, biases and routers away from where they began."""
    model = build(tiny_config(family, **changes), std=0.1, dtype=dtype).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = torch.randint(29, (4, 13), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(steps):
        loss = model.loss(tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    return model.eval()


@each_class
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_trained_and_exported(tmp_path, request, family, changes, dtype):
    model = trained(family, dtype, **changes)
    save_model(model, tmp_path / "ours", {"phase": "dense"})

    done = to_huggingface(tmp_path / "ours", tmp_path / "hf")

    assert done.class_name == request.node.callspec.id.partition("-")[2].partition(",")[0]
    theirs = load(tmp_path / "hf", dtype=dtype)
    assert type(theirs).__name__ == done.class_name
    assert_same_function(model, theirs, TOLERANCES[dtype])


@each_class
def test_and_back_as_it_was(tmp_path, family, changes):
    model = trained(family, router_z_weight=0.25, router_balance_weight=0.03, **changes)
    record = {"phase": "dense", "global_step": 12}
    save_model(model, tmp_path / "ours", record)

    to_huggingface(tmp_path / "ours", tmp_path / "hf")
    to_growlm(tmp_path / "hf", tmp_path / "back")

    again, kept = load_model(tmp_path / "back")
    assert again.config == model.config
    assert kept.items() >= record.items()
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_balancing_loss_means_the_same(tmp_path):
    """Of one layer, where the mean over layers and the sum over all tokens are the same thing."""
    config = tiny_config("llama", n_layers=1, num_experts=4, top_k=3, router_balance_weight=0.7)
    model = build(config, dtype=torch.float32)
    save_model(model, tmp_path / "ours", {})
    to_huggingface(tmp_path / "ours", tmp_path / "hf")
    theirs = load(tmp_path / "hf")
    tokens = tokens_for(theirs.config)
    found = theirs(tokens, labels=tokens, output_router_logits=True)
    without = theirs(tokens, labels=tokens)
    routings = []
    model(tokens, routings)
    expected = 0.7 * routings[0].balance_loss()
    assert abs((found.loss - without.loss) - expected) <= 1e-6


@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float16])
def test_in_another_precision(tmp_path, wanted):
    model = trained("llama", **LLAMA, **EXPERTS)
    save_model(model, tmp_path / "ours", {})
    to_huggingface(tmp_path / "ours", tmp_path / "hf", dtype=wanted)
    theirs = load(tmp_path / "hf")
    assert theirs.dtype == wanted
    to_growlm(tmp_path / "hf", tmp_path / "back", dtype=torch.float32)
    back = load_model(tmp_path / "back")[0].state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(back[name], tensor.to(wanted).float())


def test_numbers_that_float16_does_not_have(tmp_path):
    model = build(tiny_config("llama"), dtype=torch.bfloat16)
    with torch.no_grad():
        model.blocks[1].feed_forward.up.weight[0, 0] = 1e6
    save_model(model, tmp_path / "ours", {})
    with pytest.raises(UserError, match=r"blocks\.1\.feed_forward\.up\.weight has values beyond"):
        to_huggingface(tmp_path / "ours", tmp_path / "hf", dtype=torch.float16)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_a_selection_bias_at_work_has_no_place_in_mixtral(tmp_path):
    model = build(tiny_config("llama", **EXPERTS, router_bias_step=0.01), dtype=torch.float32)
    model.blocks[1].feed_forward.selection_bias[2] = 0.5
    save_model(model, tmp_path / "ours", {})
    with pytest.raises(UserError, match=r"blocks\.1\.feed_forward\.selection_bias is not zero"):
        to_huggingface(tmp_path / "ours", tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
    assert to_huggingface(tmp_path / "ours", tmp_path / "hf", architecture="growlm")


def test_broken_ties_have_no_place_in_mixtral(tmp_path):
    model = build(tiny_config("llama", **EXPERTS, router_tie_breaking=True), dtype=torch.float32)
    save_model(model, tmp_path / "ours", {})
    with pytest.raises(UserError, match=r"routing\.tie_breaking=true: MixtralForCausalLM"):
        to_huggingface(tmp_path / "ours", tmp_path / "hf")


def test_a_grown_mistral_becomes_a_mixtral(tmp_path):
    dense = build(tiny_config("llama"), dtype=torch.float32)
    origin = {"huggingface": {"model_type": "mistral", "eos_token_id": [3, 4]}}
    save_model(dense, tmp_path / "dense", origin)
    assert to_huggingface(tmp_path / "dense", tmp_path / "a").class_name == "MistralForCausalLM"
    written = json.loads((tmp_path / "a" / "config.json").read_text())
    assert (written["eos_token_id"], written["bos_token_id"]) == ([3, 4], None)
    moe = build(tiny_config("llama", **EXPERTS), dtype=torch.float32)
    save_model(moe, tmp_path / "moe", origin)
    assert to_huggingface(tmp_path / "moe", tmp_path / "b").class_name == "MixtralForCausalLM"


def test_every_config_has_an_architecture():
    for changes in CLASSES.values():
        config = tiny_config(changes[0], **changes[1])
        fitting = [each for each in ARCHITECTURES if can_represent(each, config)]
        assert len(fitting) > 1
        assert fitting[-1] is GROWLM


def test_helium_has_no_heads_of_another_width_than_the_model():
    config = ModelConfig.preset("llama", d_model=32, n_heads=4, rope={"interleaved": True})
    assert can_represent(HELIUM, config)
    assert not can_represent(HELIUM, dataclasses.replace(config, head_dim=16))


@st.composite
def any_config(draw):
    """Any shape of ours, whether a class of transformers has it or not."""
    heads, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    experts = draw(st.sampled_from([0, 2, 3]))
    return ModelConfig(
        vocab_size=draw(st.integers(1, 40)),
        d_model=draw(st.integers(1, 24)),
        n_layers=draw(st.integers(1, 3)),
        n_heads=heads * groups,
        n_kv_heads=heads,
        head_dim=2 * draw(st.integers(1, 4)),
        d_ff=draw(st.integers(1, 12)),
        max_seq_len=draw(st.integers(2, 50)),
        norm=draw(st.sampled_from(["layernorm", "rmsnorm"])),
        feed_forward=draw(st.sampled_from(["gelu", "swiglu"])),
        bias=draw(st.booleans()),
        tie_embeddings=draw(st.booleans()),
        norm_eps=draw(st.floats(1e-9, 0.1)),
        rope_theta=draw(st.floats(1.5, 1e7)),
        num_experts=experts,
        top_k=2 if experts < 3 else draw(st.integers(2, 3)),
        router_balance_weight=draw(st.floats(0.0, 1.0)),
        router_z_weight=draw(st.floats(0.0, 1.0)),
        router_bias_step=draw(st.sampled_from([0.0, 0.01])),
    )


@settings(max_examples=20)
@given(config=any_config(), sharded=st.booleans())
def test_every_model_of_ours_goes_out_and_comes_back(tmp_path_factory, config, sharded):
    folder = tmp_path_factory.mktemp("any")
    model = build(config, dtype=torch.float32)
    save_model(model, folder / "ours", {"phase": "dense"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_files, "MAX_SHARD_BYTES", 2000 if sharded else 10**9)
        to_huggingface(folder / "ours", folder / "hf")
        to_growlm(folder / "hf", folder / "back")
    again, record = load_model(folder / "back")
    assert again.config.routing.balance_weight == pytest.approx(config.routing.balance_weight)
    weight = {"router_balance_weight": config.routing.balance_weight}
    assert dataclasses.replace(again.config, **weight) == config
    assert record["phase"] == "dense"
    assert_same_state(again.state_dict(), model.state_dict())


def test_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "MAX_SHARD_BYTES", 3000)
    model = trained("llama", **LLAMA, **EXPERTS)
    save_model(model, tmp_path / "ours", {})
    to_huggingface(tmp_path / "ours", tmp_path / "hf")
    assert len(list((tmp_path / "hf").glob("model-*-of-*.safetensors"))) > 2
    assert_same_function(model, load(tmp_path / "hf"), 1e-5)


@pytest.mark.parametrize("family", ["phi", "starcoder2", "cohere"])
def test_the_nearest_class_is_the_one_that_it_was(family):
    """Classes that lack more, such as one whose key has no value for the model, are not nearer."""
    model = make(family)
    name = type(model).__name__
    config = dataclasses.replace(read_live_model(model).config, num_experts=4)
    assert f"the nearest, {name}, cannot have num_experts=4" in explain_own_class(config)
