"""Model configs: parts, presets, sizes that follow from others, and the flat fields of before."""

import copy
import pickle
from dataclasses import FrozenInstanceError, asdict, dataclass, replace

import pytest
import yaml

from growlm.config.load import get_config_folder, load_config
from growlm.model import ModelConfig, TransformerLM
from growlm.model.config import PRESETS, field_paths, get_field, nest_fields, replace_fields
from growlm.model.config_parts import NormConfig, RopeConfig, RopeScalingConfig
from growlm.runtime.errors import UserError
from growlm.storage.typed_values import parse_as


def test_sizes_that_are_not_given_follow_from_the_others():
    config = ModelConfig(d_model=512, n_heads=16)
    assert (config.n_kv_heads, config.head_dim) == (16, 32)
    assert config == ModelConfig(d_model=512, n_heads=16, n_kv_heads=16, head_dim=32)
    assert replace(config, d_model=1024).head_dim == 32
    with pytest.raises(UserError, match=r"head_dim=null: .*n_heads=3 does not divide d_model=512"):
        ModelConfig(n_heads=3).validate()


def test_a_config_is_a_value():
    config = ModelConfig(rope={"scaling": {"kind": "linear", "factor": 2.0}})
    assert config.rope == RopeConfig(scaling=RopeScalingConfig("linear", 2.0))
    assert config == pickle.loads(pickle.dumps(config)) == copy.deepcopy(config)
    assert hash(config) == hash(replace(config)) != hash(ModelConfig())
    with pytest.raises(FrozenInstanceError):
        config.d_model = 8


def test_a_subclass_takes_mappings_and_flat_fields_too():
    @dataclass(frozen=True)
    class Wider(ModelConfig):
        extra: int = 3

    config = Wider(norm={"kind": "rmsnorm"}, rope_theta=5.0, extra=4)
    assert (config.norm.kind, config.rope.theta, config.extra) == ("rmsnorm", 5.0, 4)


def test_presets_are_those_of_the_configs():
    for name, parts in PRESETS.items():
        shipped = load_config(f"+model/parts@model={name}").model
        preset = ModelConfig.preset(name)
        for part in ModelConfig.part_types():
            assert getattr(shipped, part) == getattr(preset, part), (name, part)
        assert set(parts) <= {*ModelConfig.part_types(), "tie_embeddings"}
    changed = ModelConfig.preset("llama", norm={"eps": 0.1}, d_model=64)
    assert changed.norm == NormConfig("rmsnorm", 0.1)
    with pytest.raises(UserError, match="preset=lama: must be one of gpt, llama"):
        ModelConfig.preset("lama")


def test_the_default_parts_are_all_in_the_shipped_file():
    shipped = yaml.safe_load((get_config_folder() / "model" / "parts" / "gpt.yaml").read_text())
    assert parse_as(ModelConfig, shipped | {"vocab_size": 50257}, "") == ModelConfig()
    listed = {*field_paths(parse_as(ModelConfig, shipped, ""))}
    assert listed == {*field_paths(ModelConfig())}


def test_a_file_written_before_a_field_was_added():
    content = asdict(ModelConfig())
    assert content["rope"].pop("interleaved") is False
    assert parse_as(ModelConfig, content, "") == ModelConfig()


def test_paths():
    config = ModelConfig()
    values = {path: get_field(config, path) for path in field_paths(config)}
    assert "rope.scaling.kind" in values
    assert ModelConfig(**nest_fields(values)) == config
    changed = replace_fields(config, {"norm.eps": 0.5, "rope.scaling.factor": 3.0, "d_ff": 7})
    assert (changed.norm.eps, changed.rope.scaling.factor, changed.d_ff) == (0.5, 3.0, 7)
    assert replace_fields(changed, values) == config


FLAT = {
    "norm": "rmsnorm",
    "norm_eps": 1e-6,
    "feed_forward": "swiglu",
    "bias": False,
    "rope_theta": 123.0,
    "router_balance_weight": 0.5,
    "router_z_weight": 0.25,
    "router_bias_step": 0.125,
    "router_tie_breaking": True,
}
IN_PARTS = ModelConfig(
    attention={"bias": "none"},
    rope={"theta": 123.0},
    norm={"kind": "rmsnorm", "eps": 1e-6},
    feed_forward={"kind": "swiglu", "bias": False},
    routing={"balance_weight": 0.5, "z_weight": 0.25, "bias_step": 0.125, "tie_breaking": True},
)


def test_flat_fields_as_arguments():
    assert ModelConfig(**FLAT) == IN_PARTS
    assert replace(ModelConfig(), **FLAT) == IN_PARTS
    for name in ("norm_eps", "rope_theta", "router_z_weight"):
        with pytest.warns(DeprecationWarning, match=rf"ModelConfig\.{name} is now"):
            assert getattr(IN_PARTS, name) == FLAT[name]
    with pytest.raises(AttributeError, match="nonesuch"):
        _ = IN_PARTS.nonesuch


def test_flat_fields_as_overrides():
    flat = [f"model.{name}={str(value).lower()}" for name, value in FLAT.items()]
    found = load_config(*flat).model
    for part in ModelConfig.part_types():
        assert getattr(found, part) == getattr(IN_PARTS, part), part


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.norm.kid=3", r"model\.norm\.kid: there is no such key; did you mean kind"),
        ("model.d_modl=3", r"model\.d_modl: there is no such key; did you mean d_model"),
        (
            "model.rope=llama3",
            r"model\.rope=llama3: is a part with fields; set model\.rope\.theta, ",
        ),
        ("model.norm=batchnorm", r"model\.norm\.kind=batchnorm: must be one of"),
        ("model.rope.fraction=0.1", r"model\.rope\.fraction=0\.1: must give an even number"),
        (
            ["model.rope.scaling.kind=linear", "model.rope.scaling.factor=0.5"],
            r"model\.rope\.scaling\.factor=0\.5: must be at least 1",
        ),
        (
            "model.attention.qk_norm=all",
            r"model\.attention\.qk_norm=all: must be one of none, head, full",
        ),
    ],
)
def test_wrong_settings_name_the_key(override, message):
    with pytest.raises(UserError, match=message):
        load_config(*([override] if isinstance(override, str) else override))


def test_a_norm_of_heads_has_an_epsilon_that_growth_keeps():
    assert ModelConfig().attention.qk_norm_eps is None
    config = ModelConfig(attention={"qk_norm": "head"}, norm={"eps": 0.25})
    assert config.attention.qk_norm_eps == 0.25
    assert replace(config, norm=NormConfig(eps=0.5)).attention.qk_norm_eps == 0.25
    names = TransformerLM(replace(config, d_model=16, head_dim=2, d_ff=4, n_layers=1)).state_dict()
    assert "blocks.0.attention.query_norm.weight" in names
