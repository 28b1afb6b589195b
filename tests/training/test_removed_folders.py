"""What is removed under a run while it goes on: it stops in words and makes nothing anew, or it does without."""

import shutil
import time

import pytest

from growlm.runtime.errors import UserError
from growlm.storage.watched_folders import FolderRemovedError, WatchedFolders
from growlm.training import run_plan
from growlm.training.resume.phase_reuse import PhaseReuse
from tests.commands.processes import CommandProcess
from tests.training.stopping import assert_same_run, slow
from tests.training.test_faults import AtStep
from tests.training.tiny_run import TINY, tiny_config

LOGGERS = ("none", "csv", "tensorboard", "wandb")


OVERRIDES = ("phases.dense.steps=100000", "logger=none", "run_dir=run")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run_plan(tiny_config(tmp_path_factory.mktemp("whole") / "run")).run_dir


@pytest.mark.parametrize("step", [6, *slow(1, 16)])
@pytest.mark.parametrize("name", ["", "resume", "checkpoints"])
def test_a_run_whose_folder_is_removed_stops(name, step, tmp_path, capsys):
    run_dir = tmp_path / "run"
    removed = run_dir / name
    remove = AtStep(step, lambda _: shutil.rmtree(removed))
    with pytest.raises(FolderRemovedError, match=f"^{removed} was removed or moved"):
        run_plan(tiny_config(run_dir, "checkpoint.every_steps=1"), [remove])
    assert not removed.exists()
    assert not (run_dir / "summary.json").exists()
    said = capsys.readouterr()
    assert ("To resume" in said.out) == (name == "checkpoints")
    assert "Traceback" not in said.err


@pytest.mark.parametrize("logger", LOGGERS)
def test_no_logger_makes_it_anew(logger, tmp_path):
    run_dir = tmp_path / "run"
    config = tiny_config(run_dir, f"logger={logger}", *["logger.mode=offline"][: logger == "wandb"])
    with pytest.raises(FolderRemovedError):
        run_plan(config, [AtStep(6, lambda _: shutil.rmtree(run_dir))])
    assert not run_dir.exists()


@pytest.mark.slow
def test_another_run_in_its_place_is_left_alone(tmp_path):
    run_dir = tmp_path / "run"
    others = []

    def replace(_):
        shutil.rmtree(run_dir)
        others.append(run_plan(tiny_config(run_dir)).run_dir)

    with pytest.raises(FolderRemovedError):
        run_plan(tiny_config(run_dir), [AtStep(6, replace)])
    assert others == [run_dir]
    assert (run_dir / "summary.json").exists()


def test_folders_whose_inodes_are_numbered_anew_are_the_same(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "marker").write_text("one")
    folders = WatchedFolders([tmp_path / "run"], tmp_path / "run" / "marker")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (tmp_path / "run").rename(tmp_path / "old")
    (tmp_path / "copy").rename(tmp_path / "run")
    folders.check()
    (tmp_path / "run" / "marker").write_text("another")
    with pytest.raises(FolderRemovedError):
        folders.check()


def test_as_a_command_it_is_a_line_and_exit_code_1(tmp_path, tmp_path_factory):
    streams = tmp_path_factory.mktemp("streams")
    process = CommandProcess("growlm.train", [*TINY, *OVERRIDES], tmp_path, streams)
    history = tmp_path / "run" / "checkpoints" / "training_history.jsonl"
    while process.poll() is None and not (history.exists() and '"step": 2' in history.read_text()):
        time.sleep(0.01)
    shutil.rmtree(tmp_path / "run")
    done = process.wait(120)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"stopped: {tmp_path}/run was removed or moved while the run was writing to it"
    )
    assert not (tmp_path / "run").exists()


def test_caches_that_are_removed_are_done_without(whole, tmp_path, monkeypatch):
    """What is mapped stays; phases are kept anew."""
    caches = [tmp_path / name for name in ("tokens", "phases")]
    really = PhaseReuse.store_phase
    removed = []

    def remove(self, phase, history):
        if phase.name == "moe":
            removed.extend(cache for cache in caches if cache.exists())
            for cache in caches:
                shutil.rmtree(cache)
        really(self, phase, history)

    monkeypatch.setattr(PhaseReuse, "store_phase", remove)
    settings = (f"reuse.folder='{caches[1]}'", "reuse.phases=always", f"data.cache='{caches[0]}'")
    run = run_plan(tiny_config(tmp_path / "run", *settings))
    assert removed == caches
    assert not caches[0].exists()
    assert len(list(caches[1].glob("[0-9a-f]*"))) == 2  # after moe and after wide
    assert_same_run(whole, run.run_dir)


@pytest.mark.slow
def test_a_streamed_file_that_is_removed_stops_the_run_in_words(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("\n\n".join(f"document {i}." for i in range(3000)))
    settings = ("data=text", f"data.path='{tmp_path}/?.txt'", "data.streaming=true")
    remove = AtStep(2, lambda _: (tmp_path / "b.txt").unlink())
    config = tiny_config(tmp_path / "run", *settings, "phases.dense.steps=2000")
    with pytest.raises(UserError, match=r"data\.path=.*b\.txt: cannot be read: No such file"):
        run_plan(config, [remove])
