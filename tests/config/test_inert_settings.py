"""A setting of one choice that is given with another is refused, not ignored."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from growlm.cli.train_options import check_hydra_overrides, parse_train_options
from growlm.config import load_config
from growlm.config.command_schema import EvaluateCommand
from growlm.config.composing.config_layers import ConfigLayer, parse_overrides
from growlm.config.composing.inert_settings import find_inert_settings
from growlm.config.load import compose_run_config, load_command_config
from growlm.runtime.errors import UserError

INERT = [
    (
        [],
        "data.path=my.jsonl",
        r"data=embedded does not read this; use data=text, or leave it out$",
    ),
    ([], "data.name=a/b", "use data=huggingface"),
    ([], "data.column=story", "use data=text or huggingface"),
    ([], "data.split=test", "use data=huggingface"),
    ([], "data.delimiter=tab", "use data=text"),
    ([], "data.filter={lang: en}", "use data=text or huggingface"),
    (["data.source=text"], "data.documents=3", "data=text does not read this; use data=embedded"),
    (["schedule.name=constant"], "schedule.decay_fraction=0.3", "use schedule=wsd,"),
    (["schedule.name=cosine"], "schedule.decay_fraction=0.3", "use schedule=wsd,"),
    (["schedule.name=constant"], "schedule.final_fraction=0.3", "use schedule=wsd or cosine"),
    (["logger.name=none"], "logger.project=p", "use logger=wandb or trackio"),
    (["logger.name=csv"], "logger.mode=offline", "use logger=wandb,"),
    (["logger.name=trackio"], "logger.tags=[a]", "use logger=wandb,"),
    ([], "optimizer.rewarm_steps=3", "no phase has optimizer_state=asymmetric"),
    ([], "model.rope.scaling.factor=4", r"model\.rope\.scaling\.kind=linear or llama3 or yarn"),
    (["model.rope.scaling.kind=yarn"], "model.rope.scaling.low_freq_factor=2", "kind=llama3,"),
    ([], "model.attention.qk_norm_eps=1e-3", "qk_norm=none has no such norms"),
    (["model.norm.kind=rmsnorm"], "model.norm.bias=true", "has no biases"),
    (["model.embedding.positions=learned"], "model.rope.theta=5", "rotates nothing"),
    ([], "model.embedding.position_offset=2", "set that too, or leave this out"),
    ([], "model.top_k=3", r"phases\.NAME\.grow\.0\.upcycle\.top_k"),
    (["phases.moe.grow=[]"], "model.routing.z_weight=0.1", "only those have routers"),
    ([], "baseline.equal=tokens", "needs a baseline"),
    ([], "baseline.of=x", "is set by growlm"),
    (["reuse.phases=never"], "reuse.max_gb=3", "uses no cache"),
    (["callbacks.sample_tokens=0"], "callbacks.sample_prompt=a", "takes no sample"),
    ([], "cluster.mfu=0.3", r"fraction of cluster\.peak_tflops"),
    (["trainer.memory_gb=3"], "cluster.memory_gb=4", "takes precedence"),
    ([], "verification.probe_length=129", "must be at most sequence_length=128"),
    ([], "data={path: a.txt}", "use data=text"),
]
READ = [
    ([], "data.documents=300"),
    ([], "data.path=null"),
    (["data.source=text"], "data.path=a.txt"),
    (["data.source=own", "data._target_=a.B"], "data.path=a.txt"),
    ([], "schedule.decay_fraction=0.3"),
    (["schedule.name=cosine"], "schedule.final_fraction=0.3"),
    ([], "logger.project=p"),
    (["phases.moe.optimizer_state=asymmetric"], "optimizer.rewarm_steps=3"),
    (["model.rope.scaling.kind=llama3"], "model.rope.scaling.low_freq_factor=2"),
    (["model.norm.kind=rmsnorm"], "model.norm.bias=false"),
    (["model.num_experts=4"], "model.top_k=3"),
    ([], "model.routing.z_weight=0.1"),
    (["baseline.kind=scratch"], "baseline.equal=tokens"),
    (["cluster.peak_tflops=9"], "cluster.mfu=0.3"),
    (["model.path=folder"], "model.top_k=2"),
]


@pytest.fixture(scope="module")
def composed():
    return compose_run_config([])


def changed(composed, settings):
    config = composed.copy()
    for setting in settings:
        key, _, value = setting.partition("=")
        OmegaConf.update(config, key, OmegaConf.create(f"v: {value}").v)
    return config


@pytest.mark.parametrize(("settings", "given", "reason"), INERT, ids=lambda v: str(v)[:40])
def test_what_is_not_read_is_refused(composed, settings, given, reason):
    config = changed(composed, [*settings, given] if given[-1] != "}" else settings)
    (error,) = find_inert_settings(config, parse_overrides([given]))
    assert error.key.startswith(given.partition("=")[0])
    with pytest.raises(UserError, match=reason):
        raise error


@pytest.mark.parametrize(("settings", "given"), READ, ids=str)
def test_what_is_read_is_taken(composed, settings, given):
    config = changed(composed, [*settings, given])
    assert find_inert_settings(config, parse_overrides([*settings, given])) == []


def layer(settings, is_own=True):
    return ConfigLayer("phase_plan/mine", "", Path("mine.yaml"), is_own, settings)


@pytest.mark.parametrize(
    ("settings", "overrides", "at_fault"),
    [
        ({"data": {"path": "a.txt"}}, [], True),
        ({"data": {"path": None, "split": "train", "documents": 5}}, [], False),  # as by default
        ({"data": {"path": "a.txt"}}, ["data=embedded"], False),  # the command line chooses
        ({"logger": {"project": "p"}}, ["logger.name=none"], False),
        ({"logger": {"project": "p"}}, [], False),
    ],
    ids=str,
)
def test_a_file_of_ones_own_is_at_fault_where_nothing_overrides_it(
    composed, settings, overrides, at_fault
):
    errors = find_inert_settings(composed, parse_overrides(overrides), [layer(settings)])
    assert [error.key for error in errors] == ["data.path"] * at_fault
    assert all("(set in mine.yaml)" in str(error) for error in errors)
    assert find_inert_settings(composed, [], [layer(settings, is_own=False)]) == []


def test_every_way_to_a_config_checks_it():
    stopped = Path(__file__).parents[1] / "fixtures" / "format_1" / "stopped"
    reason = r"^data\.path=a\.txt: data=embedded does not read this"
    with pytest.raises(UserError, match=reason):
        load_config("data.path=a.txt")
    with pytest.raises(UserError, match=reason):
        load_config(f"resume={stopped}", "data.path=a.txt")
    with pytest.raises(UserError, match=reason):
        load_command_config("evaluate", EvaluateCommand, ["checkpoint=c", "data.path=a.txt"])
    mine = "data.sources.mine.documents=3"
    with pytest.raises(UserError, match=r"^data\.sources\.mine\.documents=3: .*source=text does"):
        load_config("data=mixture", "data.sources.mine.path=a.txt", mine)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            ["data.validation_every=3", "split=all"],
            r"data\.validation_every=3: split=all scores every",
        ),
        (
            ["data.validation.path=b", "split=all"],
            r"data\.validation\.path=b: split=all scores the tr",
        ),
        (
            ["data.validation.path=b", "data.validation_every=3"],
            r"data\.validation_every=3: nothing is",
        ),
        (["data.validation.path=b"], None),
        (["data.validation_every=3", "split=validation"], None),
        (["data.validation.path=null", "split=all"], None),
    ],
)
def test_a_split_that_reads_no_validation(settings, reason):
    arguments = ["checkpoint=c", "data=text", "data.path=a.txt", *settings]
    if reason is None:
        load_command_config("evaluate", EvaluateCommand, arguments)
    else:
        with pytest.raises(UserError, match=f"^{reason}"):
            load_command_config("evaluate", EvaluateCommand, arguments)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["-sc"], "--shell-completion"),
        (["+hydra.sweeper.params={seed: 1}"], "hydra.sweeper.params"),
        (["-m", "hydra.sweeper.params.seed=1,2"], "hydra.sweeper.params.seed"),
    ],
)
def test_options_of_hydra_that_it_would_fail_on(arguments, key):
    with pytest.raises(UserError) as caught:
        check_hydra_overrides(parse_train_options(arguments))
    assert caught.value.key == key


def test_options_of_hydra_that_it_takes():
    check_hydra_overrides(parse_train_options(["-sc", "install=bash"]))
    check_hydra_overrides(parse_train_options(["-m", "seed=1,2", "hydra.sweeper.max_batch_size=2"]))
