"""Groups hold classes of the user's own, with arguments beside `_target_`."""

from collections import OrderedDict

import pytest

from growlm.config import load_config
from growlm.config.instantiate import instantiate_target
from growlm.config.own_classes import find_targets, get_entries, get_spec
from growlm.config.trusted_targets import check_targets_of_file, list_packages_to_trust
from growlm.runtime.errors import UserError

PACKAGE = """
import os
from os import system
from collections import OrderedDict

class Thing:
    def __init__(self, *positional, **arguments):
        self.positional, self.arguments = positional, arguments

def function(number):
    return number + 1
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "package_of_things.py").write_text(PACKAGE)
    (tmp_path / "package_never_imported.py").write_text("raise AssertionError('was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    return "package_of_things"


def test_what_stands_beside_a_class_is_its_argument():
    config = load_config(
        "optimizer._target_=my_package.Lion",
        "optimizer.rho=0.05",
        "optimizer.eps=1e-6",
        "optimizer.weight_decay=0.2",
        "optimizer.betas=[0.9,0.99]",
    )
    assert get_entries(config)["optimizer"] == "own"
    expected = {"_target_": "my_package.Lion", "rho": 0.05, "eps": 1e-6, "betas": [0.9, 0.99]}
    assert get_spec(config, "optimizer") == expected  # no value of a shipped optimizer among them
    assert config.optimizer.weight_decay == 0.2
    assert config.optimizer.beta1 is None


@pytest.mark.parametrize(
    ("group", "settings", "spec"),
    [
        ("data", ["data.path=a.txt", "data.split=train"], {"path": "a.txt", "split": "train"}),
        ("schedule", ["schedule.final_fraction=0.5"], {"final_fraction": 0.5}),
        ("tokenizer", ["tokenizer.path=a"], {"path": "a"}),
        ("logger", ["logger.project=p", "logger.x={y: 1}"], {"project": "p", "x": {"y": 1}}),
    ],
)
def test_every_group_takes_a_class(group, settings, spec):
    config = load_config(f"{group}._target_=a.b.C", *settings)
    assert get_spec(config, group) == {"_target_": "a.b.C", **spec}
    plain = load_config()
    for other in get_entries(plain).keys() - {group}:
        assert getattr(config, other) == getattr(plain, other)


def test_a_file_of_ones_own_names_a_class(tmp_path):
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "lion.yaml").write_text(
        "defaults: [own]\n_target_: my_package.Lion\nrho: 0.1\n"
    )
    config = load_config(
        f"hydra.searchpath=['file://{tmp_path}']", "optimizer=lion", "optimizer.sigma=2"
    )
    assert get_spec(config, "optimizer") == {"_target_": "my_package.Lion", "rho": 0.1, "sigma": 2}


def test_shipped_settings_keep_their_values_and_types():
    config = load_config("optimizer=adamw", "optimizer.beta2=0.99")
    assert (config.optimizer.beta2, config.optimizer.eps) == (0.99, 1e-8)
    assert config.optimizer.arguments == {}
    assert config.optimizer._target_ is None


def test_nested_classes_are_built_first(package):
    spec = {
        "_target_": f"{package}.Thing",
        "_args_": [1],
        "inner": [{"_target_": f"{package}.Thing", "a": 2}],
        "later": {"_target_": f"{package}.function", "_partial_": True},
        "plain": {"b": {"_target_": f"{package}.function", "number": 3}},
    }
    thing = instantiate_target("key", spec)
    assert thing.positional == (1,)
    assert thing.arguments["inner"][0].arguments == {"a": 2}
    assert thing.arguments["later"](4) == 5
    assert thing.arguments["plain"] == {"b": 4}


def test_text_is_never_resolved_again(package):
    """A file's text could otherwise make a class of an argument, after all classes were checked."""
    text = "${oc.create:{_target_:os.getcwd}}"
    spec = {"_target_": f"{package}.Thing", "a": text, "b": [{"c": text}]}
    assert instantiate_target("key", spec).arguments == {"a": text, "b": [{"c": text}]}


def test_targets_are_found_at_any_depth():
    config = {"a": {"_target_": "x.A", "b": [{"c": {"_target_": "y.B"}}]}, "d": {"_target_": None}}
    assert list(find_targets(config)) == [("a._target_", "x.A"), ("a.b.0.c._target_", "y.B")]


NEVER = ("callbacks.extra.x._target_", "package_never_imported.Thing")


@pytest.mark.parametrize("trust", [[], ["package"], ["package_never"], ["package_of_things", "os"]])
def test_a_file_names_classes_of_trusted_packages_only(package, trust):
    with pytest.raises(UserError) as refused:
        check_targets_of_file([("a._target_", f"{package}.Thing"), NEVER], trust)
    assert refused.value.reason.endswith(f"add trust=[{','.join(refused_packages(trust))}]")


def refused_packages(trust):
    missing = [
        name for name in ("package_of_things", "package_never_imported") if name not in trust
    ]
    return [*trust, *(missing[1:] + missing[:1])]


def test_a_trusted_package_is_enough(package):
    targets = [
        ("a._target_", f"{package}.Thing"),
        ("b._target_", f"{package}.function"),
        ("c._target_", "lightning.pytorch.callbacks.Timer"),
        ("optimizer._target_", "torch.optim.RAdam"),
    ]
    check_targets_of_file(targets, [package])
    assert list_packages_to_trust(targets) == [package]


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "builtins.eval",
        "torch.load",
        "torch.hub.load",
        "package_of_things.system",
        "package_of_things.os.system",
        "package_of_things.OrderedDict",
        "growlm.checkpoint.checkpoint_folder.shutil.rmtree",
        "growlm.checkpoint.save_model",
        "lightning.pytorch.Trainer",
    ],
)
def test_a_file_cannot_lead_to_anything_else(package, path):
    """Neither to functions of growlm and torch, nor through the imports of a trusted package."""
    with pytest.raises(UserError, match=r"add trust=|full name of a class"):
        check_targets_of_file([("callbacks.extra.x._target_", path)], [package])


@pytest.mark.parametrize(
    ("text", "reason"),
    [("import nothing_there", "No module named 'nothing_there'"), ("1 / 0", "division by zero")],
)
def test_why_a_module_cannot_be_imported(text, reason, tmp_path, monkeypatch):
    (tmp_path / f"package_with_{len(text)}").mkdir()
    (tmp_path / f"package_with_{len(text)}" / "module.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=reason):
        instantiate_target("key", {"_target_": f"package_with_{len(text)}.module.Thing"})


@pytest.mark.parametrize(
    ("spec", "key", "reason"),
    [
        ({"_target_": "strict.Strict", "evry": 2}, "key.evry", "Strict has no such .* mean every"),
        ({"_target_": "strict.Strict", "x": 2}, "key.x", "no such argument; known: every"),
        ({"_target_": "strict.nothing", "x": 2}, "key.x", "no such argument; known: none"),
        (
            {"_target_": "strict.Strikt"},
            "key._target_",
            "strict has no Strikt; did you mean Strict",
        ),
        ({"_target_": "strict.Strict.a.b"}, "key._target_", r"strict\.Strict has no a$"),
        ({"_target_": "strict", "x": 1}, "key._target_", "is neither a class nor a function"),
        ({"_target_": "Strict"}, "key._target_", r"must be MODULE\.CLASS"),
        ({"_target_": ""}, "key._target_", r"must be MODULE\.CLASS"),
        ({"_target_": "strict..Strict"}, "key._target_", r"must be MODULE\.CLASS"),
        ({"_target_": "strict.Strict", "_partial_": True}, "key._partial_", "leave it out"),
        (
            {"_target_": "strict.Strict", "every": {"_target_": "strict.Strict", "evry": 2}},
            "key.every.evry",
            "did you mean every",
        ),
    ],
)
def test_what_is_wrong_with_a_class(spec, key, reason, tmp_path, monkeypatch):
    (tmp_path / "strict.py").write_text(
        "class Strict:\n    def __init__(self, every=1): pass\ndef nothing(): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=reason) as refused:
        instantiate_target("key", spec)
    assert refused.value.key == key


@pytest.mark.parametrize(
    ("target", "reason"), [("os.getcwd", "but a function"), ("os.path", "but a module")]
)
def test_what_is_no_class_of_the_kind(target, reason):
    with pytest.raises(UserError, match=f"is not a OrderedDict, {reason}"):
        instantiate_target("key", {"_target_": target, "x": 1}, OrderedDict)


@pytest.mark.parametrize("key", ["data._target_", "tokenizer._target_"])
def test_there_is_no_shipped_class_for_data(key):
    with pytest.raises(UserError, match=r"add trust=\[growlm\]"):
        check_targets_of_file([(key, "growlm.data.PackedDataModule")], [])
