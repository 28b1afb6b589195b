"""What a sweep remembers of its jobs. The runs themselves are stand-ins here; test_sweeps.py has real ones."""

import json
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import growlm.training
from growlm.config import load_config
from growlm.reporting.html.shell_commands import build_run_commands, build_sweep_command
from growlm.reporting.reading.sweep_runs import read_sweep
from growlm.runtime.errors import DiskError, RunError, UserError
from growlm.storage.locks import acquire_lock
from growlm.storage.watched_folders import FolderRemovedError
from growlm.sweep.sweep_folder import SweepFolder, SweepRecord, make_job
from growlm.train import train
from growlm.training import Interrupted


class Runs:
    """Stands in for `run_plan`, and keeps the configs that it was asked to run."""

    def __init__(self):
        self.configs = []
        self.ending = lambda config: None

    def __call__(self, config):
        from pathlib import Path

        self.configs.append(config)
        folder = Path(config.run_dir)
        (folder / "resume").mkdir(parents=True, exist_ok=True)
        (folder / "resume" / "run.json").touch()
        if (error := self.ending(config)) is not None:
            raise error
        (folder / "summary.json").write_text("{}")
        return SimpleNamespace(run_dir=folder)

    def taken(self):
        """The seeds since the last look, and which of them were gone on with."""
        seeds = [(config.seed, config.resume is not None) for config in self.configs]
        self.configs.clear()
        return seeds


@pytest.fixture
def runs(monkeypatch, tmp_path):
    runs = Runs()
    monkeypatch.setattr(growlm.training, "run_plan", runs)
    monkeypatch.chdir(tmp_path)
    return runs


def sweep(monkeypatch, *arguments, mode="-m"):
    monkeypatch.setattr(sys, "argv", ["growlm.train", *filter(None, [mode]), *arguments])
    return train()


def jobs(folder):
    record = json.loads((folder / "sweep.json").read_text())["jobs"]
    return [(job["folder"], job["status"], job["code"]) for job in record]


def test_only_what_failed_is_run_again(runs, monkeypatch, tmp_path):
    runs.ending = lambda config: RunError("broke") if config.seed == 2 else None
    assert sweep(monkeypatch, "seed=1,2,3") == 1
    (folder,) = tmp_path.glob("outputs/*/*_sweep")
    assert jobs(folder) == [
        ("0_seed=1", "finished", 0),
        ("1_seed=2", "failed", 1),
        ("2_seed=3", "finished", 0),
    ]
    assert runs.taken() == [(1, False), (2, False), (3, False)]
    runs.ending = lambda config: None
    assert sweep(monkeypatch, "seed=1,2,3") == 0
    assert runs.taken() == [(2, True)]
    assert all(status == "finished" for _, status, _ in jobs(folder))
    assert sweep(monkeypatch, "seed=1,2,3") == 0
    assert len(list(tmp_path.glob("outputs/*/*_sweep*"))) == 2


def test_a_job_that_is_out_of_time_has_not_finished(runs, monkeypatch, tmp_path):
    runs.ending = lambda config: Interrupted(0, "after step 1")
    assert sweep(monkeypatch, "seed=1,2", "hydra.sweep.dir=here") == 0
    assert jobs(tmp_path / "here") == [
        ("0_seed=1", "interrupted", 0),
        ("1_seed=2", "interrupted", 0),
    ]
    runs.taken()
    runs.ending = lambda config: None
    assert sweep(monkeypatch, "seed=1,2", "hydra.sweep.dir=here") == 0
    assert runs.taken() == [(1, True), (2, True)]
    assert [status for _, status, _ in jobs(tmp_path / "here")] == ["finished", "finished"]


def test_a_signal_is_for_the_whole_sweep(runs, monkeypatch, tmp_path):
    runs.ending = lambda config: Interrupted(143)
    assert sweep(monkeypatch, "seed=1,2", "hydra.sweep.dir=here") == 143
    assert runs.taken() == [(1, False)]
    assert jobs(tmp_path / "here")[1] == ("1_seed=2", "pending", None)


def test_a_job_that_another_process_is_at_is_left_alone(runs, monkeypatch, tmp_path, capsys):
    runs.ending = lambda config: RunError("broke")
    sweep(monkeypatch, "seed=1,2", "hydra.sweep.dir=here")
    runs.taken()
    runs.ending = lambda config: None
    with acquire_lock(tmp_path / "here" / ".job-0.lock"):
        SweepFolder(tmp_path / "here").update_job(0, status="running")
        sweep(monkeypatch, "seed=1,2", "hydra.sweep.dir=here")
    assert runs.taken() == [(2, True)]
    assert jobs(tmp_path / "here")[0][1] == "running"
    assert "is running it" in capsys.readouterr().out


@pytest.mark.slow
def test_the_last_of_two_overrides_counts_as_it_does_for_hydra(runs, monkeypatch, tmp_path):
    assert sweep(monkeypatch, "seed=1,2", "optimizer.eps=1e-9", "seed=3", "hydra.sweep.dir=a") == 0
    assert jobs(tmp_path / "a") == [("0", "finished", 0)]
    assert (
        sweep(
            monkeypatch, "optimizer.eps=1e-9", "logger.tags=[a,b]", "seed=4,5", "hydra.sweep.dir=b"
        )
        == 0
    )
    assert [folder for folder, _, _ in jobs(tmp_path / "b")] == ["0_seed=4", "1_seed=5"]
    assert sweep(monkeypatch, "schedule=glob(co*)", "hydra.sweep.dir=c") == 0
    assert [folder for folder, _, _ in jobs(tmp_path / "c")] == [
        "0_schedule=constant",
        "1_schedule=cosine",
    ]


@pytest.mark.slow
def test_another_order_of_dials_is_another_sweep(runs, monkeypatch, tmp_path):
    dials = ["seed=1,2", "growth.noise_std=1e-3,1e-2"]
    runs.ending = lambda config: RunError("broke")
    sweep(monkeypatch, *dials)
    sweep(monkeypatch, *reversed(dials))
    assert len(list(tmp_path.glob("outputs/*/*_sweep*"))) == 2


def test_an_edited_config_file_of_any_job_makes_another_sweep(runs, monkeypatch, tmp_path):
    own = tmp_path / "own" / "experiment"
    own.mkdir(parents=True)
    for name in "ab":
        (own / f"{name}.yaml").write_text("# @package _global_\nseed: 1\n")
    command = ["-cd", str(own.parent), "experiment=a,b", "hydra.sweep.dir=here"]
    assert sweep(monkeypatch, *command) == 0
    (own / "b.yaml").write_text("# @package _global_\nseed: 2\n")
    with pytest.raises(UserError, match="holds another sweep"):
        sweep(monkeypatch, *command)


def test_files_that_were_there_stay(runs, monkeypatch, tmp_path, capsys):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "2024-01-01.log").write_text("precious")
    code = sweep(monkeypatch, "seed=1,2", "resume=auto", "hydra.sweep.dir=logs")
    assert code == 2
    assert "resume=auto" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["2024-01-01.log"]


@pytest.mark.parametrize("text", ["{", '{"jobs": [{}]}', '{"jobs": 3}'])
def test_a_sweep_file_that_is_none_of_ours(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ValueError, match=r"sweep|Expecting"):
        SweepFolder(tmp_path).read()


@pytest.mark.parametrize("folder", ["../precious", "..", ".", "", "a/b", "/"])
def test_a_job_is_never_outside_its_sweep(tmp_path, folder):
    record = SweepRecord("plan", [], [], "", [make_job(0, ["seed=1"], [])])
    record.jobs[0].folder = folder
    SweepFolder(tmp_path).write(record)
    with pytest.raises(ValueError, match="not a valid job folder name"):
        SweepFolder(tmp_path).read()


def test_a_value_that_cannot_be_is_said_before_the_first_job_begins(
    runs, monkeypatch, tmp_path, capsys
):
    said = []
    runs.ending = lambda config: said.append(capsys.readouterr().err)
    command = ["growth.scale_factor=1.5,0.5,2", "hydra.sweep.dir=here"]
    for times in (2, 0):
        assert sweep(monkeypatch, *command) == 2
        assert len(said) == times
        text = said[0] if said else capsys.readouterr().err
        assert text.count("growth.scale_factor=0.5: must be at least 1.0") == 1
        assert [status for _, status, _ in jobs(tmp_path / "here")] == [
            "finished",
            "wrong",
            "finished",
        ]
        said.clear()


def test_a_sweep_whose_folder_is_removed_stops_and_makes_nothing_anew(runs, monkeypatch, tmp_path):
    def remove(config):
        shutil.rmtree(tmp_path / "sweep")
        return FolderRemovedError(Path(config.run_dir))

    runs.ending = remove
    with pytest.raises(FolderRemovedError, match=rf"^{tmp_path}/sweep was removed or moved"):
        sweep(monkeypatch, "seed=1,2,3", "hydra.sweep.dir=sweep")
    assert runs.taken() == [(1, False)]
    assert not list(tmp_path.iterdir())


def test_a_job_whose_folder_is_removed_fails_alone(runs, monkeypatch, tmp_path):
    def remove(config):
        if config.seed != 2:
            return None
        shutil.rmtree(config.run_dir)
        return FolderRemovedError(Path(config.run_dir))

    runs.ending = remove
    assert sweep(monkeypatch, "seed=1,2,3", "hydra.sweep.dir=sweep") == 1
    assert [status for _, status, _ in jobs(tmp_path / "sweep")] == [
        "finished",
        "failed",
        "finished",
    ]


@pytest.mark.slow
def test_texts_are_swept_over_and_found_again(runs, monkeypatch, tmp_path):
    for name in ("a.txt", "b, c.txt", "d's.txt"):
        (tmp_path / name).write_text("text")
    command = ["data=text", "data.path=choice(a.txt, 'b, c.txt', d's.txt)", "hydra.sweep.dir=here"]
    runs.ending = lambda config: RunError("broke") if "," in config.data.path else None
    assert sweep(monkeypatch, *command) == 1
    assert [config.data.path for config in runs.configs] == ["a.txt", "b, c.txt", "d's.txt"]
    assert [(folder, status) for folder, status, _ in jobs(tmp_path / "here")] == [
        ("0_path=a.txt", "finished"),
        ("1_path=b--c.txt", "failed"),
        ("2_path=d-s.txt", "finished"),
    ]
    record = json.loads((tmp_path / "here" / "sweep.json").read_text())
    assert [job["dials"]["data.path"] for job in record["jobs"]] == ["a.txt", "b, c.txt", "d's.txt"]
    runs.taken()
    runs.ending = lambda config: None
    assert sweep(monkeypatch, *command) == 0
    assert runs.taken() == [(0, True)]
    typed = build_sweep_command(record["command"])["command"]
    assert sweep(monkeypatch, *shlex.split(typed)[4:], "hydra.sweep.dir=here") == 0
    assert runs.taken() == []  # the same sweep, which has finished


@pytest.mark.slow
def test_a_sweep_of_growlm_01_is_found_again(runs, monkeypatch, tmp_path):
    """It quoted the values of fewer keys."""
    (tmp_path / "a.jsonl").write_text('{"story": "text"}\n')
    text = ["data=text", "data.path=a.jsonl", "data.column=story"]
    command = [*text, "seed=1,2", "hydra.sweep.dir=here"]
    runs.ending = lambda config: RunError("broke") if config.seed == 2 else None
    sweep(monkeypatch, *command)
    path = tmp_path / "here" / "sweep.json"
    assert "data.column='story'" in path.read_text()
    path.write_text(path.read_text().replace("data.column='story'", "data.column=story"))
    runs.taken()
    assert sweep(monkeypatch, *command) == 1
    assert runs.taken() == [(2, True)]


@pytest.mark.slow
def test_folders_of_long_values_are_short_and_their_own(runs, monkeypatch, tmp_path):
    long = "日本" * 130
    line = f"callbacks.sample_prompt=choice({long}, {long}y, short)"
    runs.ending = lambda config: RunError("broke")
    assert sweep(monkeypatch, line, "seed=1,2", "hydra.sweep.dir=here") == 1
    folders = [folder for folder, _, _ in jobs(tmp_path / "here")]
    assert len(set(folders)) == 6
    assert all(len(f"{folder}.log".encode()) < 120 for folder in folders)
    assert folders[0].startswith("0_sample_prompt=日本日本日本日本日本...")
    assert "_seed=1-" in folders[0]
    assert folders[4:] == ["4_sample_prompt=short_seed=1", "5_sample_prompt=short_seed=2"]
    assert len({folder.rpartition("-")[2] for folder in folders[:4]}) == 4
    assert {path.name for path in (tmp_path / "here").iterdir() if path.is_dir()} == {*folders}
    runs.taken()
    runs.ending = lambda config: None
    assert sweep(monkeypatch, line, "seed=1,2", "hydra.sweep.dir=here") == 0
    assert all(resumed for _, resumed in runs.taken())
    assert [status for _, status, _ in jobs(tmp_path / "here")] == ["finished"] * 6


def test_the_commands_of_a_report_name_config_files_of_the_users_own(runs, monkeypatch, tmp_path):
    """They run as they stand, from any folder."""
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("# @package _global_\nname: mine\n")
    given = ["--config-dir", "own", "experiment=mine", "seed=1,2"]
    assert sweep(monkeypatch, *given, "hydra.sweep.dir=here") == 0
    found = read_sweep(tmp_path / "here")
    assert found.config_options == ["--config-dir", str(tmp_path / "own")]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    runs.taken()
    typed = build_sweep_command(found.command, found.config_options)["command"]
    assert sweep(monkeypatch, *shlex.split(typed)[4:]) == 0
    assert runs.taken() == [(1, False), (2, False)]
    commands = {each["title"]: each["command"] for each in build_run_commands(found.runs[1])}
    again = shlex.split(commands["The same from the config files"])[3:]
    assert again == [*found.config_options, "experiment=mine", "seed=2"]
    assert load_config(*again[2:], config_dir=again[1]).name == "mine"


@pytest.mark.slow
def test_the_mode_of_hydra_is_a_sweep_too(runs, monkeypatch, tmp_path):
    """From the command line, or from an experiment's file, maybe with what it sweeps over."""
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    head = "# @package _global_\nhydra:\n  mode: MULTIRUN\n"
    (tmp_path / "own" / "experiment" / "swept.yaml").write_text(
        f"{head}  sweeper: {{params: {{seed: '3,4'}}}}\n"
    )
    (tmp_path / "own" / "experiment" / "plain.yaml").write_text(head)
    own = ["--config-dir", str(tmp_path / "own")]
    for number, arguments in enumerate(
        (
            ["hydra.mode=MULTIRUN", "seed=3,4"],
            [*own, "experiment=plain", "seed=3,4"],
            [*own, "experiment=swept"],
        )
    ):
        assert sweep(monkeypatch, *arguments, mode="") == 0
        assert runs.taken() == [(3, False), (4, False)]
        assert len(list(tmp_path.glob("outputs/*/*_sweep*/sweep.json"))) == number + 1


@pytest.mark.slow
def test_a_refused_job_is_in_the_exit_code_the_record_and_the_summary(
    runs, monkeypatch, tmp_path, capsys
):
    assert sweep(monkeypatch, "seed=-1,2", "hydra.sweep.dir=here") == 2
    assert jobs(tmp_path / "here") == [("0_seed=-1", "wrong", 2), ("1_seed=2", "finished", 0)]
    printed = capsys.readouterr()
    assert printed.err.count("error: seed=-1: must be at least 0") == 1
    assert "0_seed=-1: seed=-1: must be at least 0" in printed.out
    assert "To run the remaining jobs, repeat the same command." in printed.out
    assert sweep(monkeypatch, "seed=-1,-2", "hydra.sweep.dir=all") == 2
    assert not (tmp_path / "all").exists()
    assert capsys.readouterr().err.count("error: seed=-") == 2


@pytest.mark.slow
def test_a_text_that_may_be_meant_as_a_list_is_explained(runs, monkeypatch, capsys):
    sweep(monkeypatch, "data=text", "data.path=a,b", "hydra.sweep.dir=here")
    assert "write data.path=choice(a,b)" in capsys.readouterr().err


def test_a_sweep_over_two_texts(runs, monkeypatch, tmp_path):
    assert sweep(monkeypatch, "logger.project=choice(p (v2), 'a, b')", "hydra.sweep.dir=here") == 0
    assert [config.logger.project for config in runs.configs] == ["p (v2)", "a, b"]
    assert [folder for folder, _, _ in jobs(tmp_path / "here")] == [
        "0_project=p--v2-",
        "1_project=a--b",
    ]


def test_names_of_job_folders():
    long = "日本" * 130
    names = [
        make_job(number, ["seed=1", f"a.text='{value}'", "b.n=3"], ["seed=1"]).folder
        for number, value in ((0, "it\\'s"), (1, long), (1, f"{long}y"), (1, f"y{long}"))
    ]
    assert names[0] == "0_text=it-s_n=3"
    assert names[1].startswith("1_text=日本日本日本日本日本...日本日本日本日本日本_n=3-")
    assert len({*names}) == 4
    assert all(len(f"{name}.log".encode()) < 120 for name in names)
    many = make_job(0, [f"key_{i}={i}" for i in range(100)], []).folder
    assert many.startswith("0_key_0=0_key_1=1_")
    assert len(many.encode()) <= 100


def test_quotes_that_growlm_01_did_not_write_make_no_other_sweep(tmp_path):
    former, present = (
        SweepRecord("plan", [text, "seed=1,2"], config="c", jobs=[make_job(0, [text], [])])
        for text in ("data.column=story", "data.column='story'")
    )
    assert former.matches(present)
    assert not former.matches(SweepRecord("plan", ["data.column=other", "seed=1,2"], config="c"))
    former.jobs[0].status = "finished"
    folder = SweepFolder(tmp_path)
    folder.write(former)
    assert folder.get_or_add_job(0, present.jobs[0].overrides).status == "finished"
    assert folder.get_or_add_job(0, ["data.column=other"]).status == "pending"


@pytest.mark.slow
def test_an_error_of_growlm_is_not_one_of_the_launcher(runs, monkeypatch, tmp_path, capsys):
    def fail(*_):
        raise DiskError(tmp_path / "here", OSError(28, "No space left on device"))

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as the command does
    monkeypatch.setattr(SweepFolder, "lock_job", fail)
    with pytest.raises(DiskError, match="No space left on device"):
        sweep(monkeypatch, "seed=1,2", "hydra.sweep.dir=here")
    assert "launcher failed" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_wrong_setting_of_the_sweeper_leaves_nothing(runs, monkeypatch, tmp_path):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as the command does
    for setting in ("++hydra.launcher.nothing=1", "hydra.sweeper.max_batch_size=0"):
        with pytest.raises(
            UserError, match=r"'nothing'|^hydra\.sweeper\.max_batch_size=0: must be"
        ):
            sweep(monkeypatch, setting, "seed=1,2", "hydra.sweep.dir=here")
    assert not list(tmp_path.iterdir())
