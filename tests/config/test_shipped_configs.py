"""Every shipped config composes, plans, and says how to run it."""

import re

import pytest

from growlm.checkpoint import save_model
from growlm.config import load_config
from growlm.config.load import get_config_folder
from growlm.config.phase_plan import make_plan
from growlm.model import TransformerLM
from growlm.planner.memory_estimate import has_duplicate_channels
from growlm.runtime.errors import UserError

GROUPS = {
    group.name: sorted(path.stem for path in group.glob("*.yaml"))
    for group in get_config_folder().iterdir()
    if group.is_dir()
}


def choices():
    return [(group, option) for group, options in sorted(GROUPS.items()) for option in options]


@pytest.fixture(scope="module")
def a_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(TransformerLM(load_config().model.to_model_config(257)), folder, {})
    return folder


@pytest.mark.parametrize(("group", "option"), choices())
def test_every_option_composes_into_a_plan(group, option, a_model, tmp_path):
    pretrained = [f"model.path='{a_model}'"]
    needed = {
        ("data", "text"): ["data.path=x.txt"],
        ("data", "huggingface"): ["data.name=owner/name"],
        ("data", "mixture"): ["data.sources.mine.path=x.txt"],
        ("model", "pretrained"): pretrained,
        ("phase_plan", "grow_pretrained"): pretrained,
        ("tokenizer", "huggingface"): [f"tokenizer.path='{tmp_path}'"],
    }
    if option == "own":
        needed[group, option] = [f"{group}._target_=my_package.Mine"]
    config = load_config(f"{group}={option}", *needed.get((group, option), []))
    assert make_plan(config, 257).phases


@pytest.mark.parametrize("plan", GROUPS["phase_plan"])
def test_every_plan_says_its_command(plan, a_model):
    text = (get_config_folder() / "phase_plan" / f"{plan}.yaml").read_text()
    assert re.search(r"#   python -m growlm\.train", text)
    path = [f"model.path='{a_model}'"] if "model.path" in text else []
    assert load_config(f"phase_plan={plan}", *path).name == plan


def test_dials_reach_into_the_plans():
    for plan in ("quickstart", "three_stage", "four_stage"):
        config = load_config(
            f"phase_plan={plan}",
            "growth.noise_std=0.003",
            "growth.scale_factor=3",
            "growth.extra_layers=5",
        )
        operators = [spec for phase in config.phases.values() for spec in phase.grow]
        (widen,) = [spec["widen"] for spec in operators if "widen" in spec]
        (deepen,) = [spec["deepen"] for spec in operators if "deepen" in spec]
        assert (widen.noise_std, widen.scale_factor, deepen.extra_layers) == (0.003, 3.0, 5)


@pytest.mark.parametrize(
    ("recipe", "new"),
    [
        ("auto", ("auto", "fresh")),
        ("copies", ("copies", "identity")),
        ("fresh", ("fresh", "fresh")),
    ],
)
@pytest.mark.parametrize("plan", ["quickstart", "three_stage", "four_stage"])
def test_a_recipe_reaches_into_the_plans(plan, recipe, new):
    config = load_config(f"phase_plan={plan}", f"recipe={recipe}")
    operators = [spec for phase in config.phases.values() for spec in phase.grow]
    (widen,) = [spec["widen"] for spec in operators if "widen" in spec]
    (deepen,) = [spec["deepen"] for spec in operators if "deepen" in spec]
    assert (widen.new_channels, widen.noise_std, deepen.init) == (new[0], None, new[1])


@pytest.mark.parametrize(
    ("overrides", "copies"),
    [
        ([], False),
        (["growth.noise_std=0"], True),
        (["growth.noise_std=0.02"], True),
        (["recipe=copies"], True),
    ],
)
def test_a_plan_widens_by_copies_where_noise_is_set(overrides, copies):
    plan = make_plan(load_config(*overrides), 257)
    assert has_duplicate_channels(plan.get_phase("wide"), plan.get_phase("moe")) is copies


def test_noise_is_refused_where_fresh_channels_are_asked_for():
    with pytest.raises(UserError, match=r"growth\.noise_std=0\.02.*new_channels=fresh makes none"):
        make_plan(load_config("recipe=fresh", "growth.noise_std=0.02"), 257)


def test_a_phase_is_reached_by_its_name():
    config = load_config("phases.wide.grow.0.widen.scale_factor=3", "phases.wide.lr=1e-5")
    assert config.phases["wide"].grow[0]["widen"].scale_factor == 3
    assert config.phases["wide"].lr == 1e-5


@pytest.mark.parametrize(
    ("plan", "totals"),
    [
        ("four_stage", [63_561_216, 239_986_176, 907_791_360, 1_121_872_896]),
        ("three_stage", [100_038_016, 371_640_256, 2_155_790_208]),
    ],
)
def test_full_size_plans_have_the_documented_parameters(plan, totals):
    phases = make_plan(load_config(f"phase_plan={plan}"), 1024).phases
    assert [phase.parameter_report.total for phase in phases] == totals
