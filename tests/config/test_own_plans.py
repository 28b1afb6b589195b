"""Plans of one's own: their files, the names of their checkpoints, lengths, settings that nothing reads."""

from dataclasses import asdict

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from growlm.config import load_config
from growlm.config.composing.composition import complete_phases, find_unused_settings
from growlm.config.config_dir import get_config_folder
from growlm.config.load import register_schema, to_valid_run_config
from growlm.config.validation import check_config
from growlm.runtime.errors import UserError
from growlm.training import run_plan
from tests.training.tiny_run import TINY

MINE = """# @package _global_
name: mine
sequence_length: 32
phases:
  small: {steps: 3, batch_size: 4}
  deep: {steps: 2, batch_size: 4, grow: [{deepen: {extra_layers: "${growth.extra_layers}"}}]}
"""


@pytest.fixture
def own(tmp_path):
    """A folder with a plan, and how to add files to it."""

    def write(name, text):
        path = tmp_path / "my, conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return tmp_path / "my, conf"

    write("phase_plan/mine", MINE)
    return write


def mine(own, *overrides):
    return load_config("phase_plan=mine", *overrides, config_dir=own("model/x", "{}"))


def lengths(config):
    return {name: (p.steps, p.tokens, p.flops) for name, p in config.phases.items()}


def test_files_of_every_group_are_found(own):
    own("model/tiny", "defaults: [small, _self_]\nd_model: 16\nhead_dim: 4\n")
    own("data/stories", "documents: 300\n")
    own("experiment/e", "# @package _global_\ndefaults: [{override /model: tiny}]\nseed: 7\n")
    config = mine(own, "experiment=e", "data=stories")
    assert (config.name, config.seed, config.model.d_model) == ("mine", 7, 16)
    assert config.data.documents == 300
    assert list(config.phases) == ["small", "deep"]


TABLE = """# @package _global_
defaults: [{override /data: text}, {override /tokenizer: huggingface}, {override /optimizer: sgd}]
data: {path: t.jsonl, filter: {lang: en}, delimiter: tab, max_characters: 9, truncate: true}
name: table
tokenizer: {path: folder}
optimizer: {momentum: 0.0}
phases: {small: {steps: 3, batch_size: 4}}
"""


def test_what_a_file_sets_for_another_choice_is_no_error(own):
    folder = own("phase_plan/table", TABLE)
    choices = ["phase_plan=table", "data=embedded", "tokenizer=bytes", "optimizer=adamw"]
    config = load_config(*choices, config_dir=folder)
    check_config(config)
    assert (config.data.source, config.data.filter, config.data.delimiter) == ("embedded", {}, None)
    assert config.data.max_characters == 9
    assert (config.tokenizer.path, config.optimizer.momentum) == (None, None)
    mixed = ["data=mixture", "data.sources.mine.path=a.txt"]
    config = load_config(*choices[:1], *choices[2:], *mixed, config_dir=folder)
    assert (config.data.max_characters, config.data.truncate) == (None, False)
    config = load_config("phase_plan=table", "tokenizer=bytes", config_dir=folder)
    assert (config.data.filter, config.data.delimiter) == ({"lang": "en"}, "tab")
    with pytest.raises(UserError, match=r"^data\.delimiter=;: data=embedded does not read this"):
        load_config(*choices, "data.delimiter=';'", config_dir=folder)
    own("data/mine", "defaults: [embedded, _self_]\ndelimiter: ;\n")
    with pytest.raises(UserError, match=r"^data\.delimiter=;: only data=text can use it"):
        load_config("data=mine", config_dir=folder)


def test_sources_of_a_file_for_another_choice_are_no_error(own):
    mixed = MINE.replace("name: mine", "defaults: [{override /data: mixture}]\nname: mixed")
    folder = own("phase_plan/mixed", f"{mixed}data: {{sources: {{mine: {{path: a.txt}}}}}}\n")
    assert load_config("phase_plan=mixed", "data=embedded", config_dir=folder).data.sources == {}
    sources = load_config("phase_plan=mixed", config_dir=folder).data.sources
    assert sources["mine"].path == "a.txt"


def test_a_whole_config_with_another_choice(own):
    whole = asdict(load_config())
    whole["data"] |= {"source": "text", "path": "t.tsv", "delimiter": "tab", "filter": {"a": 1}}
    folder = own("whole", OmegaConf.to_yaml(OmegaConf.create(whole)))
    register_schema()
    with initialize_config_dir(str(folder), version_base="1.3"):
        composed = compose("whole", overrides=["data.source=embedded"])
        complete_phases(composed, ["data.source=embedded"], "whole")
        assert find_unused_settings(composed, ["data.source=embedded"], "whole") == []
    data = to_valid_run_config(composed).data
    assert (data.source, data.delimiter, data.filter) == ("embedded", None, {})


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"--config-dir=.*nowhere: there is no such folder"):
        load_config(config_dir=tmp_path / "nowhere")


def test_a_file_with_the_name_of_a_shipped_one(own):
    shipped = (get_config_folder() / "phase_plan" / "dense.yaml").read_text()
    mine(own, "seed=1")
    own("phase_plan/dense", shipped)  # a copy that hides nothing
    mine(own, "seed=1")
    own("phase_plan/dense", shipped.replace("300", "200"))
    with pytest.raises(UserError, match=r"phase_plan/dense.yaml has the name of a shipped file"):
        mine(own)


@pytest.mark.parametrize(
    ("group", "package"),
    [("phase_plan", "_global_"), ("experiment", "_global_"), ("recipe", "growth")],
)
def test_a_file_without_its_package_is_told_so(own, group, package):
    folder = own(f"{group}/bare", "name: bare\n")
    with pytest.raises(UserError) as caught:
        load_config(f"{group}=bare", config_dir=folder)
    message = str(caught.value)
    assert message.startswith(f"{group}=bare: {folder}/{group}/bare.yaml needs the line")
    assert f"'# @package {package}'" in message


def test_a_wrong_key_in_a_file_has_a_suggestion(own):
    folder = own("phase_plan/wrong", MINE.replace("sequence_length", "seqence_length"))
    with pytest.raises(UserError, match=r"seqence_length: .* did you mean sequence_length\?"):
        load_config("phase_plan=wrong", config_dir=folder)


def test_a_checkpoint_is_named_after_its_phase(own):
    assert [p.save_as for p in mine(own).phases.values()] == ["small", "deep"]
    assert mine(own, "phases.deep.save_as=last").phases["deep"].save_as == "last"
    assert mine(own, "phases.deep.save_as=null").phases["deep"].save_as is None
    assert mine(own, "+phases.more.steps=1").phases["more"].save_as == "more"
    with pytest.raises(
        UserError, match=r"phases\.deep\.save_as=small: is the name of phases\.small"
    ):
        mine(own, "phases.deep.save_as=small")


def test_shipped_plans_keep_their_names():
    names = [p.save_as for p in load_config("phase_plan=four_stage").phases.values()]
    assert names == ["dense_model", "moe_model_final", "medium_moe_final", "large_moe_final"]


def run(own, folder, *overrides):
    tiny = [o for o in TINY if not o.startswith(("phases.", "growth."))]
    return run_plan(mine(own, *tiny, "logger=none", f"run_dir='{folder}'", *overrides))


def test_a_run_saves_a_model_per_phase_and_null_saves_none(own, tmp_path):
    more = ("+phases.more={steps: 1, batch_size: 4, save_as: null}", "phases.small.tokens=300")
    run(own, tmp_path / "run", *more)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert {path.name for path in checkpoints.iterdir() if path.is_dir()} == {"small", "deep"}
    # A saved config is complete, and can be run again as it is.
    again = load_config(
        "+experiment@_global_=../config", "~phase_plan", config_dir=tmp_path / "run"
    )
    assert lengths(again) == {
        "small": (None, 300, None),
        "deep": (2, None, None),
        "more": (1, None, None),
    }
    assert [phase.save_as for phase in again.phases.values()] == ["small", "deep", None]


LENGTHS = [
    (["phases.small.tokens=1e6"], (None, 1e6, None)),
    (["phases.small.flops=1e9"], (None, None, 1e9)),
    (["phases.small={tokens: 1e6}"], (None, 1e6, None)),
    (["phases.small.steps=4"], (4, None, None)),
    (["experiment=tokens"], (None, 5000, None)),
    (["experiment=tokens", "phases.small.flops=1e9"], (None, None, 1e9)),
    (["experiment=tokens", "phases.small.steps=4"], (4, None, None)),
    (["phases.small.tokens=1e6", "phases.small.steps=null"], (None, 1e6, None)),
]


@pytest.mark.parametrize(("overrides", "expected"), LENGTHS, ids=str)
def test_the_length_that_is_set_last_counts(own, overrides, expected):
    own("experiment/tokens", "# @package _global_\nphases: {small: {tokens: 5000}}\n")
    config = mine(own, *overrides)
    assert lengths(config) == {"small": expected, "deep": (2, None, None)}


def test_two_lengths_in_one_place_are_refused(own):
    own("experiment/two", "# @package _global_\nphases: {small: {tokens: 5000, flops: 1e9}}\n")
    with pytest.raises(UserError, match=r"phases\.small=tokens, flops: .*exactly one.*two\.yaml"):
        mine(own, "experiment=two")
    with pytest.raises(UserError, match=r"phases\.small=steps, tokens: needs exactly one"):
        mine(own, "phases.small.tokens=3", "phases.small.steps=3")


def test_phases_are_added_at_the_end_and_removed():
    more = "+phases.extra={steps: 10, grow: [{deepen: {extra_layers: 1}}]}"
    config = load_config(more, "phases.extra.lr=1e-4", "~phases.deep")
    assert list(config.phases) == ["dense", "moe", "wide", "extra"]
    extra = config.phases["extra"]
    assert (extra.steps, extra.lr, extra.grow[0]["deepen"].extra_layers) == (10, 1e-4, 1)
    assert load_config("+phases.last.steps=3").phases["last"].steps == 3


def test_a_misspelled_phase_in_a_file_is_recognized(own):
    own("experiment/typo", "# @package _global_\nphases: {samll: {lr: 1e-3}}\n")
    with pytest.raises(UserError, match=r"phases\.samll=none: .*; did you mean phases\.small\?"):
        mine(own, "experiment=typo")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["growth.scale_factor=2"], r"^growth\.scale_factor=2: no phase of this plan uses it$"),
        (["recipe=copies"], r"^recipe=copies: no phase of this plan uses it$"),
        (["experiment=dial"], r"^growth\.noise_std=0\.1: no phase.*\(set in .*dial\.yaml\)$"),
        (
            ["growth.extra_layers=2", "phases.deep.grow.0.deepen.extra_layers=1"],
            r"^growth\.extra_layers=2: no phase",
        ),
    ],
)
def test_a_growth_setting_that_no_phase_uses(own, overrides, message):
    own("experiment/dial", "# @package _global_\ngrowth: {noise_std: 0.1}\n")
    with pytest.raises(UserError, match=message):
        mine(own, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [["~phases.deep"], ["phases.deep.grow.0.deepen.extra_layers=3"], ["phases.deep.grow=[]"]],
)
def test_a_setting_of_the_plans_file_that_the_command_line_leaves_unused(own, overrides):
    text = MINE.replace("phases:", "growth: {extra_layers: 2, noise_std: null}\nphases:")
    own("phase_plan/dial", text.replace(", noise_std: null", ""))
    folder = own("phase_plan/stray", text)
    assert load_config("phase_plan=dial", *overrides, config_dir=folder).growth.extra_layers == 2
    with pytest.raises(UserError, match=r"^growth\.extra_layers=4: no phase of this plan uses it$"):
        load_config("phase_plan=dial", *overrides, "growth.extra_layers=4", config_dir=folder)
    with pytest.raises(UserError, match=r"^growth\.noise_std=None: no phase.*stray\.yaml\)$"):
        load_config("phase_plan=stray", "phases.deep.lr=1e-3", config_dir=folder)


def test_growth_settings_that_are_used_or_defaults(own):
    assert mine(own, "growth.extra_layers=2").phases["deep"].grow[0]["deepen"].extra_layers == 2
    assert load_config("experiment=example").growth.noise_std == 0.02
    # A baseline has no growth, but its size is that of the grown model.
    assert load_config("baseline=scratch", "growth.scale_factor=2").growth.scale_factor == 2
    # The plan to resume is that of the run, not the default one.
    load_config("resume=run", "phase_plan=dense", "growth.scale_factor=2", "phases.other.steps=1")
