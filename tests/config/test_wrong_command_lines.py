"""What is wrong on a command line is said in one line, before anything is written."""

import errno
import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hydra._internal.core_plugins import file_config_source
from omegaconf import OmegaConf

from growlm.cli.hydra_command import run_key_value_command
from growlm.cli.train_options import parse_train_options
from growlm.config import load_config
from growlm.config.instantiate import find_object
from growlm.config.load import compose_run_config
from growlm.runtime.errors import UserError
from growlm.sweep.compose import asks_for_sweep_in_file, compose_jobs
from growlm.train import main
from growlm.training import run_plan


@pytest.mark.parametrize(
    "setting",
    [{"max_time": "10s"}, {"max_time": "00:01:00"}, {"timeout_minutes": 1e300}],
    ids=str,
)
def test_a_run_is_checked_before_it_reads_a_clock(setting):
    config = load_config()
    (key,) = setting
    with pytest.raises(UserError, match=rf"^trainer\.{key}="):
        run_plan(replace(config, trainer=replace(config.trainer, **setting)))


@pytest.mark.parametrize(("composes_run", "code"), [(True, 0), (False, 2)])
def test_commands_that_compose_a_run_remove_settings(composes_run, code, monkeypatch):
    monkeypatch.setattr("sys.argv", ["plan", "~phases.deep", "+phases.more.steps=1"])
    got = []
    found = run_key_value_command(
        "", lambda given: got.extend(given) or 0, compose=None, composes_run=composes_run
    )
    assert (found, got) == (code, ["~phases.deep", "+phases.more.steps=1"] if code == 0 else [])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phases.dep.lr=1", r"did you mean deep\? \(\+phases\.dep\.lr=\.\.\. would add a phase\)$"),
        (
            "phases.xx.lr=1",
            r"has dense, moe, wide, deep \(\+phases\.xx\.lr=\.\.\. would add a phase\)$",
        ),
    ],
)
def test_a_misspelled_phase(override, message):
    with pytest.raises(UserError, match=message):
        load_config(override)


def test_a_misspelled_phase_of_a_run_to_resume():
    stopped = Path(__file__).parents[1] / "fixtures" / "format_1" / "stopped"
    with pytest.raises(
        UserError, match=r"^phases\.dep\.lr=1: the run has no phase dep; did you mean deep\?$"
    ):
        load_config(f"resume={stopped}", "phases.dep.lr=1")
    with pytest.raises(
        UserError, match=r"^phases\.x=.*: the run has no phase x; it has dense, moe, wide, deep$"
    ):
        load_config(f"resume={stopped}", "+phases.x={steps: 3}")


@pytest.fixture
def own(tmp_path):
    """A folder of one's own with files that cannot be read."""
    (tmp_path / "phase_plan").mkdir()
    for name, content in {
        "syntax": b"name: a\nphases:\n  a: {steps: 3\n  b: {steps: 3}\n",
        "twice": b"name: a\nname: b\n",
        "latin": b"# @package _global_\nname: \xff\n",
        "below": b"# @package _global_\ndefaults: [quikstart, _self_]\n",
        "mine": b"# @package _global_\nname: mine\n",
    }.items():
        (tmp_path / "phase_plan" / f"{name}.yaml").write_bytes(content)
    return tmp_path


UNREAD = [
    ("phase_plan=syntax", r"^phase_plan=syntax: /.*/syntax\.yaml, line 4: expected ',' or '\}'"),
    ("phase_plan=twice", r"^phase_plan=twice: /.*/twice\.yaml, line 2: found duplicate key name"),
    ("phase_plan=latin", r"^phase_plan=latin: /.*/latin\.yaml: is not UTF-8 text$"),
    (
        "phase_plan=below",
        r"^phase_plan=quikstart: there is no such file \(listed in phase_plan/below\.yaml\); did you mean qui",
    ),
    (
        "phase_plan=myne",
        r"^phase_plan=myne: there is no such file; did you mean mine\? known: below, den",
    ),
    (
        "optimizer=adam",
        r"^optimizer=adam: there is no such file; did you mean adamw\? known: adafactor, ",
    ),
    ("data=csv", r"^data=csv: there is no such file; known: embedded, "),
    ("hydra/launcher=x", r"^hydra/launcher=x: there is no such file; known: basic"),
    (
        "experiment=two_proceses",
        r"^experiment=two_proceses: .*; did you mean two_processes\? known: ",
    ),
    ("experiment=[example,exmple]", r"^experiment=exmple: .*; did you mean example\?"),
    ("phaseplan=mine", r"^phaseplan: there is no such key; did you mean phase_plan\?$"),
]


@pytest.mark.parametrize(("override", "message"), UNREAD)
def test_a_file_that_is_not_read(own, override, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config(override, config_dir=own)
    assert "\n" not in str(caught.value)


def test_a_config_dir_one_level_too_deep(own):
    message = (
        r"^phase_plan=mine: --config-dir takes the folder above phase_plan/; .* holds mine\.yaml"
    )
    with pytest.raises(UserError, match=message):
        load_config("phase_plan=mine", config_dir=own / "phase_plan")


@pytest.mark.parametrize(
    "overrides",
    [
        ["phase_plan=syntax"],
        ["phase_plan=latin"],
        ["phase_plan=myne"],
        ["experiment=two_proceses"],
        ["hydra/launcher=x"],
        ["--cfg", "job", "phase_plan=myne"],
        ["-m", "phase_plan=syntax", "seed=1,2"],
        ["-m", "phase_plan=latin", "seed=1,2"],
        ["-m", "experiment=two_proceses,example"],
    ],
    ids=" ".join,
)
def test_the_command_says_so_in_a_line(own, overrides, monkeypatch, capfd, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cwd")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["train", "--config-dir", str(own), *overrides])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    key = next(o.split(",")[0] for o in overrides if "=" in o)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {key}: ")
    assert not list(folder.iterdir())


def test_a_full_disk_is_not_a_run_folder(monkeypatch, capfd):
    """Output that cannot be written is said as such, although Hydra prints it."""

    class FullDisk(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sys.argv", ["train", "--help"])
    monkeypatch.setattr("sys.stdout", FullDisk())
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "stopped: the output cannot be written: No space left" in capfd.readouterr().err


def test_a_config_file_that_cannot_be_read_is_not_a_run_folder(own, monkeypatch, capfd, tmp_path):
    def fail(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(file_config_source, "open", fail, raising=False)
    monkeypatch.setattr("sys.argv", ["train", "--config-dir", str(own), "phase_plan=mine"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: config file=/")
    assert line.endswith("train.yaml: cannot be read: Permission denied")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nowhere_at_all", r"cannot be imported: .*No module named 'nowhere_at_all'"),
        ("def f(:", r"cannot be imported: .*invalid syntax"),
        ("1 / 0", r"cannot be imported: .*division by zero"),
        ("x = 1", r"there is no such class: .* has no Mine"),
    ],
)
def test_a_class_whose_module_fails_is_not_said_to_be_missing(
    code, message, tmp_path, monkeypatch, request
):
    name = f"failing_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=message):
        find_object("optimizer._target_", f"{name}.Mine")
    with pytest.raises(
        UserError, match=r"there is no such class \(.*its package must be installed"
    ):
        find_object("optimizer._target_", f"{name}_2.Mine")


@pytest.fixture
def primary(tmp_path):
    """A folder with primary configs of one's own: one with a defaults list, and a whole one without."""
    (tmp_path / "small.yaml").write_text("defaults: [train, _self_]\nsequence_length: 64\n")
    (tmp_path / "listed.yaml").write_text("defaults: [run_schema, _self_]\nseed: 3\n")
    config = OmegaConf.structured(load_config("phase_plan=dense"))
    OmegaConf.save(config, tmp_path / "whole.yaml")
    return tmp_path


@pytest.mark.parametrize(("name", "length"), [("small", 64), ("whole", 128)])
def test_a_sweep_with_a_primary_config_of_ones_own(name, length, primary):
    options = [f"--config-dir={primary}", f"--config-name={name}"]
    first, _, sweep = compose_jobs([*options, "-m", "seed=1,2"])
    assert first.sequence_length == length
    assert [(job.status, job.message) for job in sweep.jobs] == [("pending", None)] * 2
    composed = compose_run_config(["seed=2"], primary, name)
    assert (composed.seed, composed.sequence_length) == (2, length)
    file = primary / f"{name}.yaml"
    file.write_text(file.read_text() + "hydra: {mode: MULTIRUN}\n")
    assert asks_for_sweep_in_file(parse_train_options([*options, "seed=1,2"]))


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("whole", "data=embedded", r"whole\.yaml has no defaults list.* write data\.KEY=\.\.\.$"),
        ("whole", "phase_plan=dense", r"whole\.yaml has .* write phases\.NAME\.KEY=\.\.\.$"),
        ("listed", "data=text", r"listed\.yaml has no data in its defaults list, .*KEY=\.\.\.$"),
        ("whole", "experiment=example", r"whole\.yaml .*; write single keys$"),
    ],
)
def test_a_group_that_a_primary_config_does_not_list(name, override, message, primary):
    options = [f"--config-dir={primary}", f"--config-name={name}"]
    for compose in (
        lambda: compose_run_config([override], primary, name),
        lambda: compose_jobs([*options, "-m", "seed=1,2", override]),
    ):
        with pytest.raises(UserError, match=f"^{override}: /.*{message}"):
            compose()


def test_a_primary_config_that_does_not_exist(primary):
    with pytest.raises(UserError, match=r"^--config-name=nope: there is no such file$"):
        compose_jobs([f"--config-dir={primary}", "--config-name=nope", "-m", "seed=1,2"])
