"""Operators by registration: what is refused, what the registration gives, and operators that are not there."""

import importlib
import json
import pickle
import sys
from dataclasses import InitVar, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from growlm import verify as verify_command
from growlm.checkpoint import save_model
from growlm.checkpoint.offline_growth import grow_checkpoint
from growlm.config import load_config, operator_schema
from growlm.config.load import to_valid_run_config
from growlm.config.schema import RunConfig
from growlm.growth import (
    AxisGrowth,
    BlockOrigin,
    ChannelMap,
    Deepen,
    GrowthSpec,
    Upcycle,
    Widen,
    grow,
    limits,
    operators_from_dicts,
    operators_to_dicts,
    register_operator,
)
from growlm.growth.growth_inference import iter_candidate_growths
from growlm.growth.operators import registry
from growlm.growth.operators.optional_methods import summarize_operator, summarize_operator_dicts
from growlm.growth.operators.registry import available_operators, explain_unknown_operator
from growlm.planner.forecast import _less_growth
from growlm.reporting.reading.outcome import describe_growth
from growlm.runtime.errors import UserError
from growlm.verification.comparison import infer_growth_from_models
from growlm.verification.suite import run_operator_cases
from tests.growth.losslessness import assert_lossless
from tests.model.tiny_models import build, tiny_config
from tests.training.tiny_run import TINY

OWN = tuple(setting for setting in TINY if not setting.startswith("growth."))
"""The tiny plan, for grow lists that use no setting of `growth`."""

pytestmark = pytest.mark.usefixtures("own_registry")


class Change:
    def change(self, config):
        """Add hidden units that nothing reads yet."""
        size = getattr(self, "units", None) or config.d_ff + 8
        if size <= config.d_ff:
            raise UserError("units", size, "nothing would grow")
        channels = ChannelMap.round_robin(config.d_ff, size).without_copies()
        growth = AxisGrowth(channels, filler_write_init="random", filler_read_init="zero")
        return GrowthSpec(
            config=replace(config, d_ff=size),
            description=["Hidden units added"],
            axes={"hidden": growth},
        )


def make_units(name="units"):
    @register_operator(name)
    @dataclass(frozen=True)
    class Units(Change):
        """Add hidden units.

        More about it.
        """

        paper: ClassVar[str] = "of nobody"

        units: int | None = field(default=None, metadata=limits(minimum=1))
        weights: list[float] = field(default_factory=list)

        def smaller(self):
            return [Units(units) for units in range(self.units - 8, 48, -8)]

    return Units


def make_repeat():
    @register_operator("repeat")
    @dataclass
    class Repeat:
        blocks: list[int]

        def change(self, config):
            origins = [BlockOrigin(i) for i in range(config.n_layers)]
            place = max(self.blocks) + 1
            origins[place:place] = [BlockOrigin(i, "identity") for i in self.blocks]
            new = config.with_blocks([origin.source for origin in origins])
            return GrowthSpec(new, ["Blocks repeated"], blocks=tuple(origins))

        @classmethod
        def infer(cls, old, new):
            more = new.n_layers - old.n_layers
            places = range(old.n_layers - more + 1) if more > 0 else ()
            return [cls(list(range(first, first + more))) for first in places]

    return Repeat


def test_the_registration_gives_name_words_and_settings():
    units = make_units()
    assert list(available_operators()) == [
        "upcycle",
        "multiply_experts",
        "widen",
        "deepen",
        "units",
    ]
    assert available_operators()["units"].description == "Add hidden units."
    assert operators_to_dicts([units(40)]) == [{"units": {"units": 40, "weights": []}}]
    assert operators_from_dicts([{"units": {"units": 40}}]) == [units(40)]
    assert available_operators()["widen"].description.startswith("Add channels, heads")
    make_repeat()
    assert available_operators()["repeat"].description == ""


def test_the_contract_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "own_operators.md").read_text()
    for described in (GrowthSpec, AxisGrowth):
        for each in fields(described):
            assert f"| `{each.name}` |" in page, each.name
    for method in (
        "change(self, config)",
        "summarize(self)",
        "infer(cls, old, new)",
        "smaller(self)",
    ):
        assert f"| `{method} -> " in page
    axes = tiny_config().axis_sizes().keys() - {"vocabulary", "head_channels", "positions"}
    assert all(f"`{axis}`" in page for axis in axes)


def test_every_shipped_operator_has_a_description_and_words():
    for each in available_operators().values():
        assert each.description, each.name
        assert summarize_operator(each.operator_class()) != each.name


@pytest.mark.parametrize(
    ("hint", "default"),
    [
        (torch.Tensor, None),
        (dict[str, int], None),
        (tuple[int, ...], ()),
        (Any, None),
        (int | list[int], 0),
        (list[torch.Tensor], None),
        (Literal["a", "b"], "a"),
        (InitVar[int], 1),
        (list, None),
    ],
)
def test_a_field_that_is_not_plain_is_named(hint, default):
    with pytest.raises(TypeError, match=r"Loaded\.load: .*(plain data|every field is a setting)"):

        @register_operator("loaded")
        @dataclass
        class Loaded(Change):
            load: hint = default

    assert "loaded" not in available_operators()


def test_a_field_that_is_no_setting_is_named():
    with pytest.raises(TypeError, match=r"Loaded\.total: every field is a setting"):

        @register_operator("loaded")
        @dataclass
        class Loaded(Change):
            total: int = field(default=1, init=False)


@pytest.mark.parametrize(
    "value", [torch.ones(2), np.float32(1), np.ones(2), float("nan"), [1, [torch.ones(())]], (1, 2)]
)
def test_a_value_that_is_not_plain_is_named_where_it_is_written_down(value, tmp_path):
    units = make_units()
    with pytest.raises(UserError, match=r"Units\.weights: .* is not plain data.*tolist"):
        operators_to_dicts([units(weights=value)])
    save_model(build(tiny_config(), dtype=torch.float32), tmp_path / "small", {})
    with pytest.raises(UserError, match=r"Units\.weights"):
        grow_checkpoint(tmp_path / "small", tmp_path / "large", [units(weights=value)])
    assert not (tmp_path / "large").exists()


@pytest.mark.parametrize("hint", [int, float | None, list[list[float]], int | str, bool])
def test_plain_fields(hint):
    @register_operator("loaded")
    @dataclass
    class Loaded(Change):
        load: hint

    assert "loaded" in available_operators()


@pytest.mark.parametrize("name", ["Widen", "two words", "a.b", "", "1st"])
def test_names_that_yaml_cannot_have(name):
    with pytest.raises(ValueError, match="must match"):
        make_units(name)


def test_a_class_that_is_no_operator():
    with pytest.raises(TypeError, match="put @dataclass below @register_operator"):
        register_operator("units")(Change)
    with pytest.raises(TypeError, match=r"needs a method change\(config\)"):

        @register_operator("units")
        @dataclass
        class Idle:
            units: int = 1


def test_two_classes_of_one_name():
    with pytest.raises(ValueError, match=r"widen\.Widen and .*\.Units both register it"):
        make_units("widen")
    units = make_units()
    assert make_units() is not units, "a cell of a notebook that runs again replaces the class"
    assert available_operators()["units"].operator_class is not units
    with pytest.raises(ValueError, match="is registered as widen already"):
        register_operator("broaden")(Widen)


def test_an_operator_that_is_not_registered_works_in_memory(tmp_path):
    @dataclass
    class Own(Change):
        units: int = 40

    model = build(tiny_config())
    assert_lossless(model, grow(model, [Own()]))
    with pytest.raises(UserError, match=r"Own: is not registered.*@register_operator"):
        operators_to_dicts([Own()])
    save_model(model.float(), tmp_path / "small", {})
    with pytest.raises(UserError, match=r"Own: is not registered"):
        grow_checkpoint(tmp_path / "small", tmp_path / "large", [Own()])
    assert not (tmp_path / "large").exists()


PHASE = "phases.deep.grow"


def test_the_settings_are_those_of_a_plan():
    units = make_units()
    config = load_config(*OWN, f"{PHASE}=[{{units: {{units: 64, weights: [1, 2.5]}}}}]")
    assert config.phases["deep"].grow == [{"units": units(64, [1.0, 2.5])}]
    assert type(config.phases["deep"]).__name__ == "PhaseConfig"
    changed = load_config(*OWN, f"{PHASE}=[{{units: {{units: 64}}}}]", f"{PHASE}.0.units.units=72")
    assert changed.phases["deep"].grow == [{"units": units(72)}]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "[{unit: {}}]",
            r"phases\.deep\.grow\.0\.unit={}: there is no such operator; did you mean units\?",
        ),
        ("[{zzz: {}}]", r"known: upcycle, .*, units\..*entry point in the group growlm\.operators"),
        ("[{units: {unit: 4}}]", r"phases\.deep\.grow\.0\.units\.unit=4: .*did you mean units\?"),
        ("[{units: {units: many}}]", r"phases\.deep\.grow\.0\.units\.units=many: .*Integer"),
        ("[{units: {units: 0}}]", r"phases\.deep\.grow\.0\.units\.units=0: must be at least 1"),
        ("[{units: {units: 8}}]", r"phases\.deep\.grow\.0\.units\.units=8: nothing would grow"),
        ("[{units: {units: 64}, widen: {}}]", r"phases\.deep\.grow\.0=widen, units: needs exactly"),
        (
            "[units]",
            r"phases\.deep\.grow\.0=units: must have settings, which may be empty: {units: {}}",
        ),
        ("[{repeat: {}}]", r"phases\.deep\.grow\.0\.repeat\.blocks=\?\?\?: is not set"),
        (
            "[{units: {units: '${seed}'}}]",
            r"seed=0: must be at least 1.*\(used by .*units\.units\)",
        ),
        ("[{strict: {size: 3}}]", r"phases\.deep\.grow\.0\.strict=.*: an even size"),
        ("[{strict: {size: 5}}]", r"phases\.deep\.grow\.0\.strict\.size=5: not five"),
    ],
)
def test_wrong_settings_of_an_own_operator(override, message):
    make_units()
    make_repeat()

    @register_operator("strict")
    @dataclass
    class Strict(Change):
        size: int = 2

        def __post_init__(self):
            if self.size == 5:
                raise UserError("size", 5, "not five")
            if self.size % 2:
                raise ValueError("an even size")

    with pytest.raises(UserError, match=message):
        load_config(*OWN, f"{PHASE}={override}")


def test_the_schema_is_found_by_processes_that_hydra_starts():
    """Pickled by name, and made anew where it is not yet there."""
    make_units()
    schema = operator_schema.with_operator_types(RunConfig)
    data = pickle.dumps([schema, operator_schema.operator_entry_type()])
    assert pickle.loads(data)[0] is schema
    for name in [n for n in vars(operator_schema) if n.endswith("WithOperators")]:
        delattr(operator_schema, name)
    operator_schema._make_typed_schema.cache_clear()
    assert pickle.loads(data)[0].__name__ == schema.__name__


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"gone": {"a": 1}}, r"\.gone={'a': 1}: there is no such operator"),
        ({"units": {"unit": 1}}, r"\.units\.unit=1: there is no such key; did you mean units\?"),
        ({"units": {"units": "x"}}, r"\.units\.units=x: Value 'x' .* not be converted to Integer"),
        ({"units": {"weights": [1, "x"]}}, r"\.units\.weights=.*'x'.* not be converted to Float"),
        ({"units": 3}, r"\.units=3: must be an operator with its settings"),
        ("units", r"=units: must have settings, which may be empty: {units: {}}"),
        (None, r"=None: must be an operator with its settings"),
    ],
)
def test_a_saved_config_with_a_wrong_entry(entry, message):
    make_units()
    good = [{"widen": None, "units": {"units": "${seed}"}}, {"units": None}]
    with pytest.raises(UserError, match=r"phases\.deep\.grow\.2" + message):
        to_valid_run_config(OmegaConf.create({"phases": {"deep": {"grow": [*good, entry]}}}))


def test_smaller_growths_are_suggested():
    make_units()
    config = load_config(
        *OWN,
        "phases.wide.grow=[{widen: {scale_factor: 1.25}}]",
        f"{PHASE}=[{{units: {{units: 72}}}}]",
    )
    overrides = [change.overrides for change in _less_growth(config)]
    assert overrides == [
        ("phases.deep.grow.0.units.units=64",),
        ("phases.deep.grow.0.units.units=56",),
        ("phases.wide.grow.0.widen.scale_factor=1.125",),
    ]
    smaller = next(_less_growth(config)).apply(config)
    assert smaller.phases["deep"].grow[0]["units"].units == 64
    assert smaller.phases["wide"] == config.phases["wide"]


def test_words_of_a_report():
    make_units()
    known = [{"upcycle": {"num_experts": 4}}, {"deepen": {"extra_layers": 1, "init": "copy"}}]
    assert summarize_operator_dicts(known) == "4 experts, +1 layer, copied"
    saved = {
        "upcycle": None,
        "widen": {"d_ff": 64, "new": "setting"},
        "units": {},
        "gone": {"a": 1},
    }
    assert summarize_operator_dicts([saved, 5, {}, {"widen": None}]) == "widen, units, gone"
    assert describe_growth({"operators": known, "summary": "as recorded"}, {}) == "as recorded"
    phases = {"deep": {"grow": [{"widen": {"scale_factor": 2.0}, "deepen": None}]}}
    assert describe_growth({"to": "deep"}, {"phases": phases}) == "×2 wider"


def test_the_growth_between_two_models_is_inferred():
    repeat = make_repeat()
    model = build(tiny_config(n_layers=3))
    grown = grow(model, [repeat([0, 1])])
    sequences = list(iter_candidate_growths(model.config, grown.config))
    assert sequences[0] == [Deepen(2, placement="append", init="identity")]
    assert [repeat([0, 1])] in sequences
    inferred = infer_growth_from_models(model, grown)
    assert [origin.source for origin in inferred.blocks] == [0, 1, 0, 1, 2]


def test_no_operator_leads_from_one_to_the_other():
    make_units()
    settings = r"a model with vocab_size=\d+, d_ff=\d+ into one with vocab_size=7, d_ff=8 "
    with pytest.raises(ValueError, match=f"^no known growth turns {settings}"):
        infer_growth_from_models(build(tiny_config()), build(tiny_config(d_ff=8, vocab_size=7)))


def test_growths_are_inferred_in_the_usual_order():
    old, new = tiny_config(), tiny_config(d_ff=40, n_layers=3, num_experts=4)
    first = next(iter_candidate_growths(old, new))
    assert [type(operator) for operator in first] == [Upcycle, Widen, Deepen]


def test_the_suite_runs_every_registered_operator():
    make_units()
    make_repeat()  # has no default settings
    cases = list(run_operator_cases())
    names = ("upcycle", "multiply_experts", "deepen", "units")
    assert list(dict.fromkeys(case.section for case in cases)) == [f"{n} by default" for n in names]
    assert [case.name for case in cases if case.section.startswith("units")] == [
        "LayerNorm",
        "RMSNorm",
        "LayerNorm, 4 experts",
        "RMSNorm, 4 experts",
    ]
    assert all(cases)


def install(folder, entry_points, version="1.2", **modules):
    """Put modules into a folder, and beside them what an installer writes about the package."""
    info = folder / f"own_ops-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: own-ops\nVersion: {version}\n")
    lines = [f"{name} = {value}\n" for name, value in entry_points.items()]
    (info / "entry_points.txt").write_text(f"[growlm.operators]\n{''.join(lines)}")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    def call(entry_points, **modules):
        install(tmp_path / "site", entry_points, **modules)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        importlib.invalidate_caches()
        return tmp_path / "site"

    yield call
    for name in [n for n in sys.modules if n.startswith("own_ops_")]:
        del sys.modules[name]


MODULE = """
from dataclasses import dataclass
from growlm.growth import GrowthSpec, register_operator

@register_operator({name!r})
@dataclass
class Own:
    size: int = 1
    def change(self, config):
        return GrowthSpec(config, ["nothing"])
"""


@pytest.mark.parametrize("value", ["own_ops_a", "own_ops_a:Own"])
def test_an_entry_point_names_a_module_or_a_class(installed, value):
    installed({"own": value}, own_ops_a=MODULE.format(name="own"))
    (operator,) = operators_from_dicts([{"own": {"size": 3}}])
    assert (type(operator).__module__, operator.size) == ("own_ops_a", 3)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("own", "own_ops_gone", "ModuleNotFoundError: No module named 'own_ops_gone'"),
        ("own", "own_ops_a:Other", "AttributeError: .*Other"),
        ("own", "own_ops_b", "ValueError: two lines of it"),
        ("own", "own_ops_c", "SystemExit: 3"),
        ("own", "own_ops_a", "LookupError: registers no operator named own"),
        ("widen", "own_ops_w", r"ValueError: .*widen\.Widen and own_ops_w\.Own both register it"),
    ],
)
def test_a_broken_entry_point_matters_where_its_name_is_used(installed, name, value, reason):
    installed(
        {name: value, "good": "own_ops_good"},
        own_ops_a=MODULE.format(name="another"),
        own_ops_b="raise ValueError('two\\nlines of it')",
        own_ops_c="raise SystemExit(3)",
        own_ops_w=MODULE.format(name="widen"),
        own_ops_good=MODULE.format(name="good"),
    )
    entry = rf"the entry point {name} = {value} of own-ops 1\.2 fails: {reason}"
    with pytest.raises(UserError, match=rf"operator={name}: {entry}"):
        operators_from_dicts([{name: {}}])
    phase = "wide" if name == "widen" else "deep"
    with pytest.raises(UserError, match=rf"phases\.{phase}\.grow\.0\.{name}=.*: {entry}"):
        load_config(*OWN, f"{PHASE}=[{{{name}: {{}}}}]")
    assert operators_from_dicts([{"good": {}}, {"deepen": {}}])[1] == Deepen()
    assert "good" in available_operators()
    load_config("phase_plan=dense" if name == "widen" else "phase_plan=quickstart")
    assert "own-ops 1.2 fails" in explain_unknown_operator("oops"), (
        "it may be the one that is meant"
    )


def test_a_checkpoint_of_an_operator_that_is_gone(tmp_path, monkeypatch, capsys):
    units = make_units("gone")
    save_model(build(tiny_config(), dtype=torch.float32), tmp_path / "small", {})
    grow_checkpoint(tmp_path / "small", tmp_path / "large", [units(40)])
    record = json.loads((tmp_path / "large" / "config.json").read_text())["grown_from"]
    assert record["operators"] == [{"gone": {"units": 40, "weights": []}}]
    arguments = ["verify", f"old={tmp_path / 'small'}", f"new={tmp_path / 'large'}"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        verify_command.main()
    assert ended.value.code == 0, "it is registered"
    capsys.readouterr()

    del registry._REGISTERED["gone"]
    with pytest.raises(SystemExit) as ended:
        verify_command.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert f"new={tmp_path / 'large'}: was grown by the operator gone: there is no such" in error
    assert "entry point in the group growlm.operators" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"widen": {"scale": 2}},
            r"widen\.scale=2: the operator has no such setting; known: scale_",
        ),
        ({"widen": {"scale_factor": "2"}}, r"widen\.scale_factor=2: must be of type float | None"),
        ({"widen": {"scale_factor": True}}, r"widen\.scale_factor=True: must be of type"),
        ({"deepen": {"extra_layers": None}}, r"deepen\.extra_layers=None: must be of type int"),
        ({"deepen": {"extra_layers": 5000}}, r"deepen\.extra_layers=5000: must be .*at most 4096"),
        ({"units": {"weights": [1, "a"]}}, r"units\.weights=.*: must be of type list\[float\]"),
    ],
)
def test_a_wrong_setting_in_a_record(entry, message):
    make_units()
    with pytest.raises(UserError, match=message):
        operators_from_dicts([entry])
    assert operators_from_dicts([{"widen": {"scale_factor": 2}}]) == [Widen(2)]
