"""A model of one's own class on disk: saved, loaded, grown and verified, if its package is trusted."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

from growlm import generate as generate_command
from growlm import grow as grow_command
from growlm import verify as verify_command
from growlm.checkpoint import load_model, read_optimizer_states, save_model
from growlm.checkpoint.offline_growth import grow_checkpoint
from growlm.growth import Deepen, Upcycle, Widen, build_growth_map, grow, grow_optimizer_state
from growlm.model import ModelConfig, TransformerLM, label_blocks
from growlm.runtime.errors import UserError
from tests.growth.own_decoder import Decoder, DecoderConfig, decoder, difference, train
from tests.growth.test_own_decoder import Tied
from tests.model.tiny_models import assert_same_state, build, tiny_config

WIDEN = Widen(scale_factor=1.5, noise_std=1e-2)
SEQUENCES = {
    "widen": [WIDEN],
    "fresh": [Widen(scale_factor=2, new_channels="fresh"), Deepen(init="fresh")],
    "experts": [Upcycle(num_experts=4), Deepen(extra_layers=2, placement="stack")],
}
TRUST = ["tests"]
GROW = "grow=[{upcycle: {num_experts: 4}}, {widen: {scale_factor: 1.5}}, {deepen: {}}]"


@pytest.mark.parametrize("operators", SEQUENCES.values(), ids=SEQUENCES)
@pytest.mark.parametrize("model_class", [Decoder, Tied])
def test_on_disk_as_in_memory(tmp_path, operators, model_class):
    model = decoder(torch.bfloat16, model_class)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train(model, optimizer, 2)
    states = {name: optimizer.state[p] for name, p in model.named_parameters()}
    save_model(model, tmp_path / "small", {"phase": "own"}, states)
    grow_checkpoint(
        tmp_path / "small", tmp_path / "large", operators, seed=3, boundary_index=2, trust=TRUST
    )
    large, record = load_model(tmp_path / "large", trust=TRUST)
    expected = grow(model, operators, seed=3, boundary_index=2)
    assert type(large) is model_class
    assert_same_state(large.state_dict(), expected.state_dict())
    assert vars(large.config) == vars(expected.config)
    assert record.keys() == {"phase", "grown_from"}
    grown = grow_optimizer_state(build_growth_map(model, operators), states, "carry")
    on_disk = read_optimizer_states(tmp_path / "large")
    assert on_disk.keys() == grown.keys()
    for name, state in grown.items():
        assert_same_state(on_disk[name], state)


def test_what_is_loaded_computes_the_same(tmp_path):
    """Tables that are not in the state dict, and ties, are there again."""
    model = decoder(torch.float32, Tied)
    save_model(model, tmp_path / "own", {})
    loaded, _ = load_model(tmp_path / "own", trust=TRUST)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert difference(model, loaded) == 0
    train(loaded, torch.optim.SGD(loaded.parameters(), lr=0.1), 1)


def test_commands_need_trust(run, tmp_path):
    small, large = tmp_path / "small", tmp_path / "large"
    save_model(decoder(torch.float32), small, {})
    growing = (f"checkpoint={small}", f"out={large}", GROW)
    name = "tests.growth.own_decoder.Decoder"
    code, _, err = run(grow_command, *growing)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert f"checkpoint.model_class={name}: is named by a file" in err
    assert "add trust=[tests]" in err
    assert not large.exists()
    code, out, err = run(grow_command, *growing, "trust=[tests]")
    assert (code, err) == (0, "")
    assert f"Wrote {large}" in out

    code, _, err = run(verify_command, f"old={small}", f"new={large}")
    assert code == 2
    assert f"old.model_class={name}: is named by a file" in err
    assert "add trust=[tests]" in err
    code, out, _ = run(verify_command, f"old={small}", f"new={large}", "trust=[tests]")
    assert code == 0
    assert out.splitlines()[-1] == "passed"
    assert "functional identity" in out

    model, record = load_model(large, trust=TRUST)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight[0, 0] += 1
    save_model(model, tmp_path / "tampered", record)
    code, out, _ = run(
        verify_command, f"old={small}", f"new={tmp_path / 'tampered'}", "trust=[tests]"
    )
    assert code == 1
    code, _, err = run(generate_command, f"checkpoint={small}", "prompt=a")
    assert code == 2
    assert f"has a model of {name}" in err


def edited(folder, **entries):
    path = folder / "config.json"
    content = json.loads(path.read_text())
    (folder / "manifest.json").unlink()
    path.write_text(json.dumps(content | entries))
    return folder


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"model_class": "os.system"},
            r"checkpoint\.model_class=os\.system: .*add trust=\[tests,os\]",
        ),
        ({"model_class": 3}, "checkpoint.model_class=3: must be the full name of a class"),
        (
            {"model_class": "tests.growth.own_decoder.torch.nn.Linear"},
            r"torch.*trust=\[tests,torch\]",
        ),
        (
            {"model_class": "tests.growth.own_decoder.decoder"},
            "own_decoder.decoder: is not a class",
        ),
        ({"model_class": "tests.growth.own_decoder.Output"}, "Output: is not an nn.Module"),
        (
            {"config_class": "tests.growth.own_decoder.Gone"},
            "config_class=.*Gone: cannot be imported",
        ),
        ({"model": {}}, "does not describe a valid model .Decoder of DecoderConfig.: .*vocab_size"),
        ({"model": []}, "does not describe a valid model"),
    ],
)
def test_files_that_name_something_else(tmp_path, entries, message):
    save_model(decoder(torch.float32), tmp_path / "own", {})
    folder = edited(tmp_path / "own", **entries)
    with pytest.raises(UserError, match=message):
        load_model(folder, trust=TRUST)
    with pytest.raises(UserError, match=message):
        grow_checkpoint(folder, tmp_path / "large", [WIDEN], trust=TRUST)
    assert not (tmp_path / "large").exists()


def test_weights_of_another_model(tmp_path):
    save_model(decoder(torch.float32), tmp_path / "own", {})
    content = json.loads((tmp_path / "own/config.json").read_text())["model"]
    folder = edited(tmp_path / "own", model=content | {"intermediate_size": 25})
    with pytest.raises(UserError, match=r"down_proj\.weight has shape \(16, 24\); the config says"):
        load_model(folder, trust=TRUST)


class OneLayer(Decoder):
    """All its layers are one."""

    def __init__(self, config):
        super().__init__(config)
        layers = [self.model.layers[0]] * config.num_hidden_layers
        self.model.layers = label_blocks(torch.nn.ModuleList(layers))


def test_layers_that_are_one_on_disk(tmp_path):
    """Noise is drawn once for all their names."""
    model = decoder(torch.float32, OneLayer)
    operators = [Upcycle(num_experts=4), WIDEN]
    save_model(model, tmp_path / "small", {})
    grow_checkpoint(tmp_path / "small", tmp_path / "large", operators, trust=TRUST)
    large, _ = load_model(tmp_path / "large", trust=TRUST)
    assert large.model.layers[0] is large.model.layers[1]
    assert_same_state(large.state_dict(), grow(model, operators).state_dict())
    with pytest.raises(UserError, match="are one parameter, and the growth would part them"):
        grow_checkpoint(tmp_path / "small", tmp_path / "deep", [Deepen()], trust=TRUST)


def test_two_names_of_one_tensor_that_differ(tmp_path):
    model = decoder(torch.float32, Tied)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + 1)
    save_model(model, tmp_path / "own", {})
    with pytest.raises(UserError, match=r"embed_tokens\.weight and lm_head\.weight are one tensor"):
        load_model(tmp_path / "own", trust=TRUST)


class WithTuple(DecoderConfig):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.sizes = (1, 2)


class WithMethods(WithTuple):
    def to_dict(self):
        return vars(self) | {"sizes": list(self.sizes)}

    @classmethod
    def from_dict(cls, values):
        return cls(**values | {"sizes": tuple(values["sizes"])})


def test_configs_that_json_does_not_keep(tmp_path):
    class Local(Decoder):
        pass

    def save(model):
        save_model(model, tmp_path / "own", {})

    with pytest.raises(
        UserError, match=r"config\.sizes=\(1, 2\): has a value of type tuple, which"
    ):
        save(Decoder(WithTuple()))
    with pytest.raises(UserError, match="is defined inside a function"):
        save(Local(DecoderConfig()))
    with pytest.raises(UserError, match="model=Linear: has no attribute config"):
        save(torch.nn.Linear(2, 2))
    assert list(tmp_path.iterdir()) == []
    save(Decoder(WithMethods()))
    assert load_model(tmp_path / "own", trust=TRUST)[0].config.sizes == (1, 2)


@dataclasses.dataclass(frozen=True)
class NamedConfig(ModelConfig):
    """A `ModelConfig` with a field of its own."""

    nickname: str = "none"
    spans: tuple[int, ...] = ()


class Named(TransformerLM):
    """Of growlm's class, but with a config of one's own."""


@pytest.mark.parametrize("model_class", [TransformerLM, Named])
def test_a_config_with_a_field_of_its_own(tmp_path, model_class):
    values = {f.name: getattr(tiny_config(), f.name) for f in dataclasses.fields(ModelConfig)}
    config = NamedConfig(**values, nickname="small", spans=(1, 2))
    assert dataclasses.replace(config, d_model=16) == config
    assert hash(dataclasses.replace(config)) == hash(config)
    model = build(config, dtype=torch.float32, model_class=model_class)
    operators = [Upcycle(num_experts=4), WIDEN, Deepen()]
    grown = grow(model, operators)
    assert (type(grown), type(grown.config)) == (model_class, NamedConfig)
    assert (grown.config.nickname, grown.config.d_model) == ("small", 24)
    save_model(model, tmp_path / "small", {})
    with pytest.raises(UserError, match=r"NamedConfig, which is built by growlm grow and .*trust="):
        load_model(tmp_path / "small")
    grow_checkpoint(tmp_path / "small", tmp_path / "large", operators, trust=TRUST)
    loaded, _ = load_model(tmp_path / "large", trust=TRUST)
    assert (type(loaded), loaded.config) == (model_class, grown.config)
    assert_same_state(loaded.state_dict(), grown.state_dict())


def test_growlms_own_class_needs_no_trust(tmp_path):
    model = build(tiny_config())
    save_model(model, tmp_path / "ours", {})
    content = json.loads((tmp_path / "ours/config.json").read_text())
    assert content.keys() == {"format", "model"}
    for trust in ([], TRUST):
        assert type(load_model(tmp_path / "ours", trust=trust)[0]) is TransformerLM


def test_a_config_without_a_class_of_its_own(tmp_path):
    model = Decoder(SimpleNamespace(**vars(DecoderConfig())))
    save_model(model, tmp_path / "own", {})
    loaded, _ = load_model(tmp_path / "own", trust=[*TRUST, "types"])
    assert loaded.config == model.config
