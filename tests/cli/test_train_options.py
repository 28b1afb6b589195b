"""Options of `growlm train`: anywhere, abbreviated, and refused in one line where growlm cannot follow them."""

import os

import pytest

from growlm.cli.train_options import (
    MULTIRUN,
    check_hydra_overrides,
    check_sweep_overrides,
    parse_train_options,
)
from growlm.reporting.console.plain_console import VERBOSE_VARIABLE, is_verbose
from growlm.runtime.errors import UserError
from growlm.train import train


@pytest.mark.parametrize(
    "line",
    [
        "-m seed=1,2 optimizer=sgd",
        "--multirun seed=1,2 optimizer=sgd",
        "--multi seed=1,2 optimizer=sgd",
        "seed=1,2 -m optimizer=sgd",
        "seed=1,2 optimizer=sgd --multirun",
        "hydra.mode=MULTIRUN seed=1,2 optimizer=sgd",
        "seed=1,2 hydra.mode='MULTIRUN' optimizer=sgd",
        "++hydra.mode=RunMode.MULTIRUN seed=1,2 optimizer=sgd -m",
    ],
)
def test_every_way_to_ask_for_a_sweep_is_the_same(line):
    options = parse_train_options(line.split())
    assert options.is_sweep
    assert options.to_arguments() == [MULTIRUN, "seed=1,2", "optimizer=sgd"]


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("seed=1 --cfg job -p trainer", "--cfg=job --package=trainer seed=1"),
        ("-c=all ~phases.deep", "--cfg=all ~phases.deep"),
        ("-cd mine -cn own", "--config-dir=mine --config-name=own"),
        ("-i seed=1", "--info=all seed=1"),
        ("--info defaults seed=1", "--info=defaults seed=1"),
        ("hydra.mode=RUN", "hydra.mode=RUN"),
        ("hydra.mode=FOO", "hydra.mode=FOO"),  # Hydra lists the modes
        ("--hydra-h", "--hydra-help"),
    ],
)
def test_options_go_to_hydra_with_their_full_names(line, arguments):
    assert parse_train_options(line.split()).to_arguments() == arguments.split()


@pytest.mark.parametrize("option", ["-v", "--verbose", "--verb"])
def test_verbose_is_growlms_own_and_hydra_does_not_see_it(option):
    options = parse_train_options(["seed=1", option, "-m"])
    assert options.is_verbose
    assert options.to_arguments() == [MULTIRUN, "seed=1"]
    assert not parse_train_options(["seed=1"]).is_verbose


@pytest.mark.parametrize("verbose", [True, False])
def test_verbose_reaches_what_the_command_starts_and_nothing_after_it(monkeypatch, verbose):
    seen = []
    monkeypatch.delenv(VERBOSE_VARIABLE, raising=False)
    monkeypatch.setattr("growlm.train._train", lambda options: seen.append(is_verbose()) or 0)
    monkeypatch.setattr("sys.argv", ["growlm.train", "seed=1", *(["-v"] if verbose else [])])
    assert train() == 0
    assert seen == [verbose]
    assert VERBOSE_VARIABLE not in os.environ


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("hydra.mode=RUN -m seed=1,2", "hydra.mode=RUN: -m asks for a sweep"),
        ("-m --cfg job", "option=--cfg: cannot be given together with --multirun"),
        ("--run --info", "option=--info: cannot be given together with --run"),
        ("--cfg hydra.mode=RUN", "--cfg=hydra.mode=RUN: must be one of job, hydra, all"),
        ("--cfg", "--cfg=: must be one of job, hydra, all"),
        ("--cfg job --package", "--package=: needs a config key"),
        ("--config-dir", "--config-dir=: needs a folder"),
        ("--info foo", "--info=foo: must be one of all, config"),
        ("-v --cfg job", "option=--verbose: has no effect on --cfg; leave it out"),
        ("--ver", "option=--ver: is ambiguous: write --version or --verbose"),
        ("--verbose=2", "option=--verbose=2: --verbose takes no value"),
        ("--resolve", "option=--resolve: can only be given together with --cfg"),
        ("--package trainer", "option=--package: can only be given together with --cfg"),
        ("--experimental-rerun job.pickle", "option=--experimental-rerun: is not supported"),
        ("--exp job.pickle", "option=--exp: is not supported"),
        ("--config-path x", "option=--config-path: is not used by growlm; --config-dir adds"),
        ("-cp x", "option=-cp: is not used by growlm"),
        ("--conf x", "option=--conf: is ambiguous: write --config-dir or --config-name"),
        (
            "--confg-dir x",
            "option=--confg-dir: there is no such option; did you mean --config-dir?",
        ),
        ("-x", "option=-x: there is no such option; see --help"),
        ("--", "option=--: there is no such option"),
        ("--help=3", "option=--help=3: --help takes no value"),
        ("seed", "argument=seed: must be key=value"),
        ("=3", "argument==3: must be key=value"),
        ("+=3", "argument=+=3: must be key=value"),
    ],
)
def test_what_growlm_cannot_follow_is_refused(line, message):
    with pytest.raises(UserError) as caught:
        parse_train_options(line.split())
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "line",
    [
        "-m hydra.sweep.subdir=x",
        "-m hydra.run.dir=x",
        "hydra.output_subdir=.hydra",
        "+hydra.job.chdir=True",
    ],
)
def test_settings_of_hydra_that_would_write_beside_growlm_are_refused(line):
    key = line.split()[-1].lstrip("+")
    with pytest.raises(UserError, match=f"^{key}: "):
        check_hydra_overrides(parse_train_options(line.split()))
    check_hydra_overrides(parse_train_options([*line.replace("-m ", "").split(), "--cfg", "hydra"]))


@pytest.mark.parametrize(
    "override",
    ["hydra/launcher=basic", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=x", "hydra.sweeper.x=1"],
)
def test_a_single_run_is_not_given_settings_of_a_sweep(override):
    with pytest.raises(UserError, match="only a sweep reads it; add -m"):
        check_sweep_overrides(["seed=1", override])
    check_sweep_overrides(["hydra.run.dir=x", "hydra.job.name=y", "hydra.verbose=true"])
