"""What ours cannot be is refused by its key in config.json or by its tensor, and nothing is written."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from growlm.checkpoint import load_model, save_model
from growlm.huggingface import (
    HuggingFaceTensors,
    is_hf_folder,
    read_hf_config,
    to_growlm,
    to_huggingface,
)
from growlm.huggingface.pretrained import open_pretrained
from growlm.runtime.errors import UserError
from tests.huggingface.hf_models import CONFIGS, FIXED, SHAPE, make
from tests.model.tiny_models import build, tiny_config

MISSING = object()
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0}

REFUSED = [
    # family, key of config.json, value, what the message says after the key
    ("llama", "model_type", "gemma", r"architectures=.*: must be \[GemmaForCausalLM\]"),
    ("llama", "model_type", "bloom", r"=bloom: ALiBi position biases are not supported; docs/arch"),
    (
        "llama",
        "model_type",
        "none",
        r"=none: is not supported; docs/architectures\.md lists what is",
    ),
    (
        "llama",
        "model_type",
        MISSING,
        r"=null: is not supported; docs/architectures\.md lists what is",
    ),
    ("llama", "architectures", ["LlamaModel"], r"=.*must be \[LlamaForCausalLM\]"),
    ("llama", "quantization_config", {"quant_method": "gptq"}, r"=.*must be null"),
    ("llama", "hidden_act", "gelu", r"=gelu: must be silu or swish"),
    ("llama", "hidden_act", None, r"=null: must be silu or swish"),
    ("llama", "attention_bias", "yes", r"=yes: must be False or True"),
    ("llama", "rope_parameters", YARN | {"factor": "x"}, r"\.factor='x': must be a number"),
    ("llama", "rope_parameters", YARN | {"factor": 0.5}, r"\.factor=0\.5: must be at least 1"),
    (
        "llama",
        "rope_parameters",
        YARN | {"factor": 2.718281828459045, "mscale": 1.0, "mscale_all_dim": -10.0},
        r"=.*must give positive scales",
    ),
    ("llama", "rope_scaling", {"type": "longrope"}, r"rope_parameters\.short_factor=0: must have"),
    (
        "phi3",
        "rope_scaling",
        {"type": "linear"},
        r"\.rope_type=linear: must be default or one of l",
    ),
    (
        "llama",
        "rope_parameters",
        {"partial_rotary_factor": 0.5},
        r"partial_rotary_factor=0\.5: must",
    ),
    ("llama", "rope_scaling", {"type": "dynamic", "factor": 2.0}, r"\.rope_type=dynamic: must be"),
    (
        "llama",
        "rope_parameters",
        LLAMA3 | {"high_freq_factor": 1.0},
        r"\.high_freq_factor=1\.0: must be",
    ),
    ("llama", "rope_parameters", {"full_attention": {}}, r"=.*one mapping for all layers"),
    ("llama", "rope_parameters", 3, r"=3: must be null or"),
    (
        "llama",
        "rope_parameters",
        {"rope_theta": "many"},
        r"rope_theta='many': must be a number",
    ),
    ("llama", "head_dim", 7, r"=7: must give an even number"),
    ("llama", "num_key_value_heads", 3, r"=3: must divide num_attention_heads=4"),
    ("llama", "num_attention_heads", 0, r"=0: must be at least 1"),
    ("llama", "hidden_size", MISSING, r"=null: must be given"),
    ("llama", "hidden_size", "32", r"='32': must be an integer"),
    ("llama", "vocab_size", 31.5, r"=31\.5: must be an integer"),
    ("llama", "tie_word_embeddings", "no", r"='no': must be true or false"),
    ("llama", "rms_norm_eps", 0.0, r"=0\.0: must be greater than 0"),
    ("llama", "num_hidden_layers", 4000, r"source=.*tensors, too few for the 4000 layers"),
    ("llama", "logits_scaling", 8.0, r"=8\.0: must be null or 1"),
    ("llama", "final_logit_softcapping", 30.0, r"=30\.0: must be null"),
    ("llama", "layer_types", ["sliding_attention"] * 3, r"=.*must be null or full_attention"),
    ("mistral", "layer_types", ["full_attention"] * 2, r"=.*must be null or a list of 3 types"),
    ("mistral", "layer_types", ["sliding_attention"] * 3, r"=.*must be null or full_attention"),
    ("mistral", "sliding_window", "wide", r"=wide: must be null or a number above 0"),
    ("mixtral", "sliding_window", 0, r"=0: must be null or a number above 0"),
    ("qwen2", "use_sliding_window", "yes", r"=yes: must be True or False"),
    ("gemma2", "layer_types", ["chunked"] * 3, r"layer_types\[0\]=chunked: must be sliding_att"),
    ("gemma2", "sliding_window", None, r"=null: must be given: layer_types has sliding"),
    ("gemma2", "query_pre_attn_scalar", -1, r"=-1: must be a number above 0"),
    ("gemma2", "attn_logit_softcapping", 0.0, r"=0\.0: must be greater than 0"),
    ("smollm3", "no_rope_layers", [1, 2, 0], r"=.*must be null or a list of 3 ones and zeros"),
    ("granite", "logits_scaling", 0, r"=0: must be a number above 0"),
    ("granite", "residual_multiplier", "x", r"='x': must be a number"),
    ("glm4", "attention_bias", 1, r"=1: must be False or True"),
    ("glm4", "rope_parameters", {"partial_rotary_factor": 0.4}, r"tary_factor=0\.4: must give"),
    ("ernie4_5", "use_bias", "yes", r"=yes: must be False or True"),
    ("ernie4_5", "partial_rotary_factor", 0.5, r"=0\.5: must be 1\.0: its class rotates all"),
    ("starcoder2", "hidden_act", "silu", r"=silu: must be gelu_pytorch_tanh or gelu_new"),
    (
        "stablelm",
        "qk_layernorm",
        True,
        r"=True: must be null or False: LayerNorm of queries and keys",
    ),
    ("opt", "word_embed_proj_dim", 16, r"=16: must be null or hidden_size: embeddings of another"),
    ("opt", "do_layer_norm_before", False, r"=False: must be null or True: normalization after"),
    ("opt", "layer_norm_elementwise_affine", False, r"=False: must be True"),
    ("opt", "_remove_final_layer_norm", True, r"=True: must be False"),
    ("olmo", "clip_qkv", 8.0, r"=8\.0: must be null: clipping of queries, keys and values"),
    ("gpt_bigcode", "multi_query", False, r"=False: must be True"),
    ("arcee", "hidden_act", "silu", r"=silu: must be relu2"),
    ("seed_oss", "attention_bias", "yes", r"=yes: must be False or True"),
    ("gpt2", "scale_attn_by_inverse_layer_idx", True, r"=True: must be False"),
    ("gpt2", "activation_function", "tanh", r"=tanh: must be gelu_new"),
    ("qwen2_moe", "mlp_only_layers", "0", r"=0: must be null or a list of blocks"),
    ("qwen2_moe", "decoder_sparse_step", 0, r"=0: must be a number above 0"),
    ("qwen2_moe", "decoder_sparse_step", 9, r"num_experts=4: has no effect: no block is a mixture"),
    ("mixtral", "num_local_experts", 4096, r"source=.*tensors, too few for the 3 layers"),
    ("mixtral", "num_experts_per_tok", 1, r"=1: must be at least 2"),
    ("mixtral", "num_experts_per_tok", 5, r"=5: must be at most num_local_experts=4"),
    ("mixtral", "num_local_experts", 1, r"=1: must be at least 2"),
    ("llama", "lm_head_bias", True, r"=True: must be null or False"),
    (
        "phi",
        "qk_layernorm",
        True,
        r"=True: must be null or False: LayerNorm of queries and keys is",
    ),
    ("phi", "hidden_act", "tanh", r"=tanh: must be gelu_new"),
    ("phi", "rope_parameters", {"partial_rotary_factor": 0.4}, r"tary_factor=0\.4: must give"),
    ("falcon", "alibi", True, r"=True: must be null or False: ALiBi position biases are not supp"),
    ("falcon", "new_decoder_architecture", "yes", r"=yes: must be False or null"),
    ("falcon", "multi_query", False, r"=False: must be True"),
    ("falcon", "parallel_attn", False, r"=False: must be True"),
    ("falcon", "num_ln_in_parallel_attn", 2, r"=2: must be null or 1"),
    ("falcon", "bias", 1, r"=1: must be False or True"),
    ("cohere", "use_qk_norm", True, r"=True: must be null or False: LayerNorm of queries and keys"),
    ("cohere", "logit_scale", 0.0, r"=0\.0: must be greater than 0"),
    ("cohere2", "sliding_window", None, r"=null: must be given: layer_types has sliding"),
    ("gptj", "rotary_dim", 16, r"=16: must be an even number from 2 to 8, the channels of"),
    ("gptj", "rotary_dim", None, r"=null: must be an even number"),
    ("gptj", "rotary_dim", 3, r"=3: must be an even number from 2 to 8"),
    ("codegen", "n_head", 6, r"=6: must be a multiple of 4"),
    ("gpt_neox", "use_parallel_residual", "yes", r"='yes': must be true or false"),
    ("gpt_neox", "attention_bias", False, r"=False: must be True"),
    ("gpt_neox", "hidden_act", "gelu_new", r"=gelu_new: must be gelu or gelu_python"),
    ("gpt_neox", "rope_parameters", {"partial_rotary_factor": 0.1}, r"rotary_pct=0\.1: must give"),
    ("gpt_neox", "rope_parameters", {"partial_rotary_factor": 0.4}, r"rotary_pct=0\.4: must give"),
    ("gpt_neox", "hidden_size", 33, r"=33: must be a multiple of num_attention_heads=4"),
    (
        "llama",
        "growlm",
        {"model": {"norm": "layernorm"}},
        r"\.model\.norm\.kind=layernorm: there is no such field; known: routing\.",
    ),
    ("llama", "growlm", {"model": 7}, r"=.*must be a mapping"),
    ("llama", "eos_token_id", "</s>", r"=</s>: must be null, a token id or a list of token ids"),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of each family; copied before it is changed."""
    folder = tmp_path_factory.mktemp("saved")
    for family in FIXED:
        make(family).save_pretrained(folder / family)
    return folder


def changed(saved, tmp_path, family, key, value):
    shutil.copytree(saved / family, tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    content = json.loads(path.read_text())
    content.pop(key, None)
    path.write_text(json.dumps(content if value is MISSING else content | {key: value}))
    return tmp_path / "hf"


def assert_refused(tmp_path, message):
    with pytest.raises(UserError, match=message):
        to_growlm(tmp_path / "hf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize(
    ("family", "key", "value", "message"), REFUSED, ids=[f"{f} {k}" for f, k, _, _ in REFUSED]
)
def test_config(saved, tmp_path, family, key, value, message):
    folder = changed(saved, tmp_path, family, key, value)
    names_its_key = message if message[0].isalpha() else key + message
    assert_refused(tmp_path, names_its_key)
    assert is_hf_folder(folder) == (value is not MISSING or key != "model_type")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rms_norm_eps", 10**400, "rms_norm_eps is a number of 401 digits"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps is NaN"),
        ("rope_parameters", {"rope_theta": 10**400}, r"rope_parameters\.rope_theta is a number"),
        (
            "rope_parameters",
            {"rope_theta": float("inf")},
            r"rope_parameters\.rope_theta is Infinity",
        ),
    ],
)
def test_numbers_that_no_float_holds(saved, tmp_path, key, value, message):
    folder = changed(saved, tmp_path, "llama", key, value)
    assert_refused(tmp_path, rf"config\.json: {message}")
    with pytest.raises(UserError, match=message):
        open_pretrained(folder, "checkpoint")


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("llama", "architectures", MISSING),
        ("llama", "auto_map", {"AutoModelForCausalLM": "code.Class"}),
        ("llama", "sliding_window", 8),
        ("llama", "attention_dropout", 0.5),
        ("llama", "pretraining_tp", 2),
        ("llama", "head_dim", None),
        ("llama", "head_dim", MISSING),
        ("llama", "num_key_value_heads", None),
        ("llama", "num_key_value_heads", MISSING),
        ("llama", "attention_bias", MISSING),
        ("llama", "tie_word_embeddings", MISSING),
        ("llama", "rope_scaling", None),
        ("llama", "rope_scaling", {"type": "default"}),
        ("llama", "layer_types", ["full_attention"] * 3),
        ("llama", "logits_scaling", 1.0),
        ("mistral", "sliding_window", 64),
        ("mistral", "sliding_window", 10_000),
        ("gpt_neox", "hidden_dropout", 0.5),
    ],
)
def test_config_that_changes_nothing(saved, tmp_path, family, key, value):
    folder = changed(saved, tmp_path, family, key, value)
    assert read_hf_config(folder)[0] == read_hf_config(saved / family)[0]
    assert HuggingFaceTensors(folder).names


def test_keys_that_need_not_agree_and_do_not_go_together(tmp_path):
    biases = {"attention_bias": False, "attention_out_bias": True}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "seed_oss"} | SHAPE | biases))
    message = r"attention_out_bias=True: must be False where attention_bias is False$"
    with pytest.raises(UserError, match=message):
        read_hf_config(tmp_path)


def test_a_record_says_nothing_of_what_is_in_the_folder(saved, tmp_path):
    lies = {"format": "growlm/9", "model": {"d_model": 1}, "tokenizer": "gpt2", "phase": "moe"}
    folder = changed(saved, tmp_path, "llama", "growlm", {"record": lies})
    to_growlm(folder, tmp_path / "out")
    model, record = load_model(tmp_path / "out")
    assert model.config.d_model == 32
    assert record.keys() == {"phase", "huggingface"}


def test_positions_as_older_files_have_them(saved, tmp_path):
    folder = changed(saved, tmp_path, "llama", "rope_parameters", MISSING)
    assert read_hf_config(folder)[0].rope.theta == 10000.0
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_theta": 500000}))
    assert read_hf_config(folder)[0].rope.theta == 500000.0
    shutil.rmtree(folder)
    folder = changed(saved, tmp_path, "gpt_neox", "rope_parameters", MISSING)
    older = {"rotary_pct": 1.0, "rotary_emb_base": 25000}
    path.write_text(json.dumps(json.loads(path.read_text()) | older))
    assert read_hf_config(folder)[0].rope.theta == 25000.0
    shutil.rmtree(folder)
    folder = changed(saved, tmp_path, "mixtral", "rope_parameters", MISSING)
    assert read_hf_config(folder)[0].rope.theta == 1e6


@pytest.mark.parametrize(
    "family",
    [
        *("glm", "glm4", "ernie4_5", "starcoder2", "stablelm", "opt", "olmo", "seed_oss"),
        *(
            "nemotron",
            "arcee",
            "helium",
            "cwm",
            "ministral",
            "exaone4",
            "vaultgemma",
            "granitemoeshared",
        ),
    ],
)
def test_values_of_absent_keys_are_those_of_its_class(tmp_path, family):
    class_of = CONFIGS[family]
    # Heads that every class's own number of key/value heads divides.
    shape = SHAPE | {"hidden_size": 1280, "num_attention_heads": 160}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family} | shape))
    found = read_hf_config(tmp_path)[0]
    class_of(**shape).save_pretrained(tmp_path)
    assert found == read_hf_config(tmp_path)[0]
    assert found.rope.interleaved == (family in ("glm", "glm4", "ernie4_5", "helium"))


def rewritten(saved, tmp_path, family, change):
    """A copy whose tensors went through `change`."""
    shutil.copytree(saved / family, tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def put(name, make_tensor):
    return lambda tensors: tensors.update({name: make_tensor(tensors)})


def drop(name):
    return lambda tensors: tensors.pop(name)


QUERY = "model.layers.1.self_attn.q_proj.weight"
EXPERT = "model.layers.0.block_sparse_moe.experts.2.w1.weight"
TENSORS = [
    ("llama", drop(QUERY), f"{QUERY} is missing from the weights"),
    ("llama", drop("lm_head.weight"), "lm_head.weight is missing from the weights"),
    (
        "llama",
        put(QUERY, lambda t: torch.zeros(32, 31)),
        rf"{QUERY} has shape \(32, 31\); .*\(32, 32\)",
    ),
    (
        "llama",
        put("model.layers.1.extra", lambda t: torch.zeros(3)),
        r"have model\.layers\.1\.extra",
    ),
    ("llama", put(f"{QUERY[:-7]}.bias", lambda t: torch.zeros(32)), r"have .*q_proj\.bias"),
    (
        "llama",
        put(QUERY, lambda t: torch.zeros(32, 32, dtype=torch.int8)),
        r"has dtype torch\.int8; weights must be floating-point",
    ),
    (
        "llama",
        put(QUERY, lambda t: t[QUERY].to(torch.uint8)),
        rf"{QUERY} has dtype torch\.uint8; weights must be floating-point",
    ),
    ("mixtral", drop(EXPERT), f"{EXPERT} is missing from the weights"),
    (
        "mixtral",
        put(EXPERT, lambda t: t[EXPERT].half()),
        r"experts\.gate have different dtypes: torch\.float16",
    ),
    (
        "gpt_neox",
        put("gpt_neox.layers.0.attention.query_key_value.bias", lambda t: torch.zeros(97)),
        r"query_key_value\.bias has shape \(97,\); .*\(96,\)",
    ),
]


@pytest.mark.parametrize(("family", "change", "message"), TENSORS)
def test_tensors(saved, tmp_path, family, change, message):
    rewritten(saved, tmp_path, family, change)
    assert_refused(tmp_path, message)


def test_tables_of_old_files_say_nothing(saved, tmp_path):
    def add(tensors):
        for layer in range(3):
            name = f"gpt_neox.layers.{layer}.attention"
            tensors[f"{name}.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
            tensors[f"{name}.masked_bias"] = torch.tensor(-1e9)
            tensors[f"{name}.rotary_emb.inv_freq"] = torch.ones(4)

    rewritten(saved, tmp_path, "gpt_neox", add)
    plain = HuggingFaceTensors(saved / "gpt_neox")
    assert HuggingFaceTensors(tmp_path / "hf").names == plain.names


def test_a_head_beside_a_tied_embedding(tmp_path):
    make("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "saved" / "llama")
    embedding = "model.embed_tokens.weight"
    copied = put("lm_head.weight", lambda tensors: tensors[embedding].clone())
    rewritten(tmp_path / "saved", tmp_path, "llama", copied)
    assert "head.weight" not in HuggingFaceTensors(tmp_path / "hf").names
    shutil.rmtree(tmp_path / "hf")
    other = put("lm_head.weight", lambda tensors: tensors[embedding] + 1)
    rewritten(tmp_path / "saved", tmp_path, "llama", other)
    with pytest.raises(
        UserError, match=r"tie_word_embeddings is true, but lm_head\.weight differs from"
    ):
        HuggingFaceTensors(tmp_path / "hf")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt"]
)
def test_pickles(saved, tmp_path, name):
    shutil.copytree(saved / "llama", tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf" / name)
    assert_refused(tmp_path, rf"only in {name}, a pickle file, which can run code")


def test_no_weights_and_damaged_weights(saved, tmp_path):
    shutil.copytree(saved / "llama", tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert_refused(tmp_path, r"model\.safetensors: cannot be read")
    path.unlink()
    assert_refused(tmp_path, r"neither model\.safetensors nor")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"nothing", b"[" * 100_000])
def test_no_readable_config(saved, tmp_path, content):
    shutil.copytree(saved / "llama", tmp_path / "hf")
    (tmp_path / "hf" / "config.json").write_bytes(content)
    assert not is_hf_folder(tmp_path / "hf")
    assert_refused(tmp_path, r"source=.*config\.json")


def test_the_wrong_way_round(saved, tmp_path):
    save_model(build(tiny_config()), tmp_path / "ours", {})
    assert not is_hf_folder(tmp_path / "ours")
    with pytest.raises(UserError, match="is a growlm checkpoint"):
        to_growlm(tmp_path / "ours", tmp_path / "out")
    with pytest.raises(UserError, match="is already a Hugging Face model"):
        to_huggingface(saved / "llama", tmp_path / "out")
    with pytest.raises(UserError, match=r"out=.*already exists"):
        to_growlm(saved / "llama", tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_a_checkpoint_whose_weights_are_not_its_own(tmp_path):
    save_model(build(tiny_config()), tmp_path / "ours", {})
    path = tmp_path / "ours" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(UserError, match=r"source=.*model\.safetensors: is damaged"):
        to_huggingface(tmp_path / "ours", tmp_path / "out")
