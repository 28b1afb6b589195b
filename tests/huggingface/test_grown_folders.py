"""A Hugging Face folder grown in one step: the same bits as converting it, growing it and converting it back."""

import json
import shutil
import struct

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from growlm.checkpoint import load_model, save_model
from growlm.checkpoint import safetensors_io as tensor_files
from growlm.checkpoint.grown_tensors import GrownTensors
from growlm.checkpoint.offline_growth import grow_checkpoint
from growlm.growth import Deepen, MultiplyExperts, Upcycle, Widen, grow
from growlm.growth.growth_map import TensorMap
from growlm.huggingface import grow_folder, to_growlm, to_huggingface
from growlm.huggingface.folders.folder_growth import prepare_folder_growth
from growlm.huggingface.transformers_model import GrowLMForCausalLM
from growlm.runtime.errors import DiskError, RunError, UserError
from growlm.verification.check_report import Status
from tests.checkpoint.test_growing_on_disk import largest_file
from tests.huggingface.hf_models import load, make, tokens_for
from tests.model.tiny_models import EXPERTS, assert_same_state, build, tiny_config

DEEPEN = [Deepen(extra_layers=2, placement="stack", init="copy")]
GROWTHS = {
    "deeper Llama": ("llama", DEEPEN, "LlamaForCausalLM"),
    "Llama to Mixtral": ("llama", [Upcycle(num_experts=4)], "MixtralForCausalLM"),
    "wider Mixtral": (
        "mixtral",
        [Widen(scale_factor=2, noise_std=1e-3), MultiplyExperts(2)],
        "MixtralForCausalLM",
    ),
    "Gemma to a mixture": ("gemma", [Upcycle(num_experts=2)], "GrowLMForCausalLM"),
}
TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "</s>": 2}, "unk_token": "a"},
}
SIDE_FILES = {
    "tokenizer.json": json.dumps(TOKENIZER),
    "tokenizer_config.json": json.dumps({"eos_token": "</s>", "chat_template": "{{ x }}"}),
    "special_tokens_map.json": json.dumps({"eos_token": "</s>"}),
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
    "generation_config.json": json.dumps({"eos_token_id": 2, "do_sample": True, "top_p": 0.9}),
    "tekken.json": "{}",
    "spiece.model": "pieces",
    "LICENSE": "terms",
    "LICENSE-models.txt": "more terms",
    "USE_POLICY.md": "policy",
}
CARD = "---\nlicense: llama3.2\nlanguage:\n- en\ntags:\n- theirs\n---\n# The original\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Small models of transformers, with every side file."""
    root = tmp_path_factory.mktemp("hf")
    for family in ("llama", "mixtral", "gemma"):
        make(family, dtype=torch.bfloat16).save_pretrained(root / family)
        for name, text in SIDE_FILES.items():
            path = root / family / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        (root / family / "README.md").write_text(CARD)
        (root / family / "pytorch_model.bin").write_text("a pickle")
        (root / family / "modeling_theirs.py").write_text("raise SystemExit")
    return root


def weights(folder):
    return {k: v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}


def chain(source, out, operators, tmp_path, **settings):
    """What took three steps before."""
    to_growlm(source, tmp_path / "in", dtype=settings.pop("dtype", None))
    grow_checkpoint(tmp_path / "in", tmp_path / "grown", operators, seed=3)
    to_huggingface(tmp_path / "grown", out, **settings)


@pytest.mark.parametrize(
    "growth",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name.startswith("Gemma") else [])
        for name in GROWTHS
    ],
)
def test_one_step_gives_what_three_give(folders, tmp_path, growth):
    family, operators, class_name = GROWTHS[growth]
    report = grow_folder(folders / family, tmp_path / "out", operators, seed=3)
    chain(folders / family, tmp_path / "chained", operators, tmp_path)

    assert report.class_after == class_name
    assert (report.own_class_reason is not None) == (class_name == "GrowLMForCausalLM")
    found = weights(tmp_path / "out")
    assert_same_state(found, weights(tmp_path / "chained"))
    assert report.bytes_after == sum(tensor.nbytes for tensor in found.values())
    configs = [json.loads((tmp_path / n / "config.json").read_text()) for n in ("out", "chained")]
    assert configs[0] == configs[1] == json.loads(json.dumps(report.config_json))
    names = [{p.name for p in (tmp_path / n).iterdir()} for n in ("out", "chained")]
    assert names[0] - names[1] == {"README.md", "README.source.md"}
    assert names[1] <= names[0]


def test_transformers_loads_what_is_written(folders, tmp_path):
    make("llama").save_pretrained(tmp_path / "hf")
    operators = [Upcycle(num_experts=4), Widen(scale_factor=1.5), Deepen(extra_layers=1)]
    grow_folder(tmp_path / "hf", tmp_path / "out", operators)
    theirs, original = load(tmp_path / "out"), load(tmp_path / "hf")
    tokens = tokens_for(original.config)
    with torch.no_grad():
        assert (theirs(tokens).logits - original(tokens).logits).abs().max() <= 2e-5


def test_routers_in_fp32_leave_the_rest_in_half_precision(folders, tmp_path):
    """What growlm's class saves in bf16 has routers in fp32; loaded again it is in bf16, not in fp32."""
    operators = [Upcycle(num_experts=2)]
    grow(load(folders / "gemma"), operators).save_pretrained(tmp_path / "saved")
    grow_folder(tmp_path / "saved", tmp_path / "out", DEEPEN, seed=3)
    chain(tmp_path / "saved", tmp_path / "chained", DEEPEN, tmp_path)
    for name in ("saved", "out", "chained"):
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["dtype"] == "bfloat16", name
        dtypes = {k.split(".")[-2]: v.dtype for k, v in weights(tmp_path / name).items()}
        assert dtypes.pop("router") == torch.float32
        assert set(dtypes.values()) == {torch.bfloat16}
    model = GrowLMForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    for name, tensor in weights(tmp_path / "out").items():
        assert torch.equal(model.state_dict()[name], tensor)
        assert model.state_dict()[name].dtype == tensor.dtype


def test_all_four_ways(folders, tmp_path):
    operators = [Upcycle(num_experts=4), Deepen(extra_layers=1)]
    to_growlm(folders / "llama", tmp_path / "ours")
    grow_checkpoint(tmp_path / "ours", tmp_path / "expected", operators)
    for source, to in ((folders / "llama", "growlm"), (tmp_path / "ours", None)):
        out = tmp_path / f"{source.name}_{to}"
        grow_folder(source, out, operators, to=to)
        model, record = load_model(out)
        expected, expected_record = load_model(tmp_path / "expected")
        assert_same_state(model.state_dict(), expected.state_dict())
        assert (model.config, record) == (expected.config, expected_record)
    to_huggingface(tmp_path / "expected", tmp_path / "hf")
    report = grow_folder(tmp_path / "ours", tmp_path / "out", operators, to="huggingface")
    assert report.class_before == "TransformerLM"
    assert report.class_after == "MixtralForCausalLM"
    assert_same_state(weights(tmp_path / "out"), weights(tmp_path / "hf"))


@pytest.mark.parametrize("to", ["huggingface", pytest.param("growlm", marks=pytest.mark.slow)])
def test_weights_are_converted_before_they_are_grown(folders, tmp_path, to):
    operators = [Widen(scale_factor=2, noise_std=1e-2)]
    report = grow_folder(
        folders / "llama", tmp_path / "out", operators, seed=3, dtype=torch.float32, to=to
    )
    assert (report.dtypes_before, report.dtypes) == ((torch.bfloat16,), (torch.float32,))
    assert report.bytes_before == 2 * report.parameters_before.total
    if to == "huggingface":
        assert "| dtype | bfloat16 | float32 |" in (tmp_path / "out" / "README.md").read_text()
    chain(folders / "llama", tmp_path / "hf", operators, tmp_path, dtype=torch.float32)
    other = tmp_path / ("hf" if to == "huggingface" else "grown")
    assert_same_state(weights(tmp_path / "out"), weights(other))
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {torch.float32}
    to_growlm(folders / "llama", tmp_path / "ours")
    report = grow_folder(
        tmp_path / "ours", tmp_path / "own", operators, seed=3, dtype=torch.float32
    )
    assert_same_state(weights(tmp_path / "own"), weights(tmp_path / "grown"))
    assert (report.dtypes_before, report.dtypes) == ((torch.bfloat16,), (torch.float32,))
    assert report.bytes_before == 2 * report.parameters_before.total


def test_growlms_own_class_is_explained(folders):
    plan = prepare_folder_growth(folders / "gemma", [Upcycle(num_experts=2)], checks_values=False)
    assert plan.report.class_after == "GrowLMForCausalLM"
    assert (
        "the nearest, GemmaForCausalLM, cannot have num_experts=2" in plan.report.own_class_reason
    )


def test_every_side_file_goes_along(folders, tmp_path):
    grow_folder(folders / "llama", tmp_path / "out", DEEPEN)
    grow_folder(tmp_path / "out", tmp_path / "again", [Upcycle(num_experts=2)])
    to_growlm(tmp_path / "again", tmp_path / "ours")
    grow_folder(tmp_path / "ours", tmp_path / "last", DEEPEN)
    to_huggingface(tmp_path / "last", tmp_path / "hf")
    for name in ("out", "again", "ours", "last", "hf"):
        for file, text in SIDE_FILES.items():
            assert (tmp_path / name / file).read_text() == text
        assert not (tmp_path / name / "pytorch_model.bin").exists()
        assert not (tmp_path / name / "modeling_theirs.py").exists()
    for name in ("out", "again"):
        assert (tmp_path / name / "README.source.md").read_text() == CARD


def test_the_model_card(folders, tmp_path):
    report = grow_folder(folders / "llama", tmp_path / "out", [Upcycle(num_experts=4)], seed=7)
    card = (tmp_path / "out" / "README.md").read_text()
    _, header, text = card.split("---\n", 2)
    header = yaml.safe_load(header)
    assert header["license"] == "llama3.2"
    assert header["language"] == ["en"]
    assert header["tags"] == ["growlm"]
    assert "`llama`" in text
    assert str(tmp_path) not in card
    assert str(folders) not in card
    assert "| class | LlamaForCausalLM | MixtralForCausalLM |" in text
    total = report.parameters_after.total
    assert f"| parameters | {report.parameters_before.total:,} | {total:,} |" in text
    assert "| num_experts | 0 | 4 |" in text
    growth = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert growth["grow"][0]["upcycle"]["num_experts"] == 4
    assert growth["seed"] == 7
    grow_folder(tmp_path / "out", tmp_path / "again", [MultiplyExperts(2)])
    again = (tmp_path / "again" / "README.md").read_text()
    assert "multiply_experts" in again.split("was itself grown")[0]
    assert "upcycle" in again.split("was itself grown")[1]


@pytest.mark.parametrize(
    ("kind", "to"),
    [
        ("hf", "huggingface"),
        ("ours", "growlm"),
        pytest.param("hf", "growlm", marks=pytest.mark.slow),
        pytest.param("ours", "huggingface", marks=pytest.mark.slow),
    ],
)
def test_written_weights_are_compared_if_asked(folders, tmp_path, monkeypatch, kind, to):
    to_growlm(folders / "llama", tmp_path / "ours")
    source = folders / "llama" if kind == "hf" else tmp_path / "ours"
    operators = [Upcycle(num_experts=4), Widen(scale_factor=2, noise_std=1e-2)]
    report = grow_folder(source, tmp_path / "out", operators, to=to, verify=True)
    assert report.weight_check.status is Status.PASSED
    if to == "huggingface":
        assert "all 33 tensors match" in (tmp_path / "out" / "README.md").read_text()
    read = GrownTensors.read
    monkeypatch.setattr(GrownTensors, "read", lambda *key: read(*key) * (1 + ("down" in key[1])))
    with pytest.raises(RunError, match="the written weights are wrong: "):
        grow_folder(source, tmp_path / "wrong", operators, to=to, verify=True)
    assert not (tmp_path / "wrong").exists()


def test_a_stack_of_experts_is_grown_once(folders, tmp_path, monkeypatch):
    grown = []
    grow_weight = TensorMap.grow_weight
    monkeypatch.setattr(
        TensorMap, "grow_weight", lambda self, *rest: grown.append(self) or grow_weight(self, *rest)
    )
    report = grow_folder(folders / "llama", tmp_path / "out", [Upcycle(num_experts=4)])
    changed = [each for each in report.growth_map.tensors.values() if not each.keeps_weight]
    assert len(grown) == len(changed) == 4 * 3  # those that stay as they are go from file to file


def test_shards_with_an_index(folders, tmp_path, monkeypatch):
    whole = grow_folder(folders / "mixtral", tmp_path / "whole", DEEPEN)
    monkeypatch.setattr(tensor_files, "MAX_SHARD_BYTES", whole.bytes_after // 3)
    grow_folder(tmp_path / "whole", tmp_path / "sharded", DEEPEN)
    grow_folder(tmp_path / "sharded", tmp_path / "again", DEEPEN)
    index = json.loads((tmp_path / "again" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    found = weights(tmp_path / "again")
    assert index["weight_map"].keys() == found.keys()
    model = load(tmp_path / "again")
    assert model.config.num_hidden_layers == 9
    to_growlm(tmp_path / "again", tmp_path / "ours")
    to_growlm(folders / "mixtral", tmp_path / "small")
    expected = grow(load_model(tmp_path / "small")[0], DEEPEN * 3)
    assert_same_state(load_model(tmp_path / "ours")[0].state_dict(), expected.state_dict())


def test_a_dry_run_reads_headers_only(folders, tmp_path):
    """A copy with holes instead of data, whose checksums cannot be right."""
    shutil.copytree(folders / "mixtral", tmp_path / "sparse")
    (tmp_path / "sparse" / "manifest.json").write_text("{}")
    file = tmp_path / "sparse" / "model.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        opened.truncate(8 + length)
        opened.truncate(size)
    operators = GROWTHS["wider Mixtral"][1]
    settings = {"checks_values": False}
    plan = prepare_folder_growth(tmp_path / "sparse", operators, **settings).report
    real = grow_folder(folders / "mixtral", tmp_path / "out", operators)
    assert plan.config_json == real.config_json
    assert plan.bytes_after == real.bytes_after
    assert plan.sidecar_files == real.sidecar_files
    assert any("bfloat16" in line for line in plan.exactness)


@pytest.mark.parametrize(
    ("family", "operators", "dtype", "said"),
    [
        ("llama", DEEPEN, None, "changes what the model computes"),
        ("llama", [Deepen(extra_layers=1)], None, "Nothing is rounded in bfloat16"),
        ("llama", [Widen(scale_factor=2)], None, "Rounded in bfloat16: "),
        (
            "llama",
            [Widen(scale_factor=2, noise_std=1e-3)],
            torch.float32,
            "In float32, what is scaled or gets noise is exact up to rounding.",
        ),
    ],
)
def test_what_is_exact_is_said(folders, family, operators, dtype, said):
    plan = prepare_folder_growth(folders / family, operators, dtype=dtype)
    assert said in " ".join(plan.report.exactness)


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ("llama", {"to": "onnx"}, "to=onnx: must be one of growlm, huggingface"),
        ("llama", {"optimizer_state": "carry"}, "optimizer_state=carry: a Hugging Face folder"),
        ("ours", {"optimizer_state": "carry", "to": "huggingface"}, "leave the setting out"),
        ("llama", {"trust": ["theirs"]}, "code of a Hugging Face folder is never run"),
        ("llama", {"to": "growlm", "architecture": "growlm"}, "to=huggingface only"),
        ("nowhere", {}, "checkpoint=.*nowhere: there is no such folder"),
    ],
)
def test_settings_that_do_not_apply(folders, tmp_path, source, settings, message):
    save_model(build(tiny_config(), dtype=torch.float32), tmp_path / "ours", {})
    root = folders if source == "llama" else tmp_path
    with pytest.raises(UserError, match=message):
        grow_folder(root / source, tmp_path / "out", DEEPEN, **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_an_optimizer_state_that_cannot_go_along_is_named(tmp_path):
    model = build(tiny_config("llama"), dtype=torch.float32)
    states = {n: {"step": torch.ones(())} for n, _ in model.named_parameters()}
    save_model(model, tmp_path / "ours", {}, states)
    report = grow_folder(tmp_path / "ours", tmp_path / "hf", DEEPEN, to="huggingface")
    assert report.omitted == ("the optimizer state",)
    report = grow_folder(tmp_path / "ours", tmp_path / "out", DEEPEN, optimizer_state="reset")
    assert report.omitted == ("the optimizer state",)


def test_nothing_is_left_of_a_growth_to_huggingface_that_fails(folders, tmp_path, monkeypatch):
    with largest_file(20_000), pytest.raises(DiskError, match="still to be written"):
        grow_folder(folders / "llama", tmp_path / "out", DEEPEN)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 9))
    with pytest.raises(UserError, match=r"out=.*needs .* kB; the disk has 9 B free"):
        grow_folder(folders / "llama", tmp_path / "out", DEEPEN)
    assert list(tmp_path.iterdir()) == []


def test_a_link_out_of_the_folder_is_refused(folders, tmp_path):
    shutil.copytree(folders / "llama", tmp_path / "linked")
    for name in ("LICENSE", "README.md", "additional_chat_templates/tools.jinja"):
        link = tmp_path / "linked" / name
        kept = link.read_bytes()
        link.unlink()
        link.symlink_to(folders / "llama" / name)
        with pytest.raises(UserError, match="leads out of"):
            grow_folder(tmp_path / "linked", tmp_path / "out", DEEPEN)
        link.unlink()
        link.write_bytes(kept)
    assert not (tmp_path / "out").exists()


def test_own_settings_of_a_mixture_need_growlms_class(tmp_path):
    model = build(tiny_config("llama", **EXPERTS, router_bias_step=0.1), dtype=torch.float32)
    model.blocks[0].feed_forward.selection_bias += 1
    save_model(model, tmp_path / "ours", {})
    with pytest.raises(UserError, match="use architecture=growlm"):
        grow_folder(tmp_path / "ours", tmp_path / "out", DEEPEN, to="huggingface")
    settings = {"to": "huggingface", "architecture": "growlm"}
    report = grow_folder(tmp_path / "ours", tmp_path / "out", DEEPEN, **settings)
    assert report.class_after == "GrowLMForCausalLM"


def test_a_head_that_is_stored_twice(folders, tmp_path):
    make("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "hf")
    tensors = weights(tmp_path / "hf")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    grow_folder(tmp_path / "hf", tmp_path / "out", DEEPEN)
    assert "lm_head.weight" not in weights(tmp_path / "out")
    tensors["lm_head.weight"] += 1
    save_file(tensors, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="differs from"):
        grow_folder(tmp_path / "hf", tmp_path / "no", DEEPEN)
