"""Runs on the user's own text: the same whatever the file's kind, streamed or not, and across a kill."""

import gzip
import json
import os
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from growlm.runtime.errors import UserError
from growlm.training import Interrupted, run_plan
from tests.training.stopping import SignalAt, assert_same_run, history, slow
from tests.training.tiny_run import TINY, tiny_config, used

WORDS = [
    "the",
    "old",
    "fox",
    "and",
    "a",
    "hen",
    "went",
    "over",
    "hill",
    "to",
    "see",
    "what",
    "moon",
    "is",
    "made",
    "of",
]
DOCUMENTS = [
    " ".join(WORDS[(i * 7 + j * (i % 5 + 1)) % len(WORDS)] for j in range(1 + i % 9)) + f" {i}."
    for i in range(1500)
]
SHUFFLED = ("data.shuffle_window=100", "data.validation_every=30")
STREAMED = (*SHUFFLED, "data.streaming=true")
LONG = (
    *used(TINY, ("data=text",)),
    "sequence_length=64",
    *(f"phases.{name}.steps=6" for name in ("dense", "moe", "wide", "deep")),
    *(f"phases.{name}.batch_size=32" for name in ("dense", "moe", "wide", "deep")),
)
"""Reads 49,000 tokens: the corpus, of which a stream tokenizes 1,100 documents at a time, comes twice."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same documents in files of several kinds."""
    folder = tmp_path_factory.mktemp("files")
    rows = [{"number": i, "text": text} for i, text in enumerate(DOCUMENTS)]
    (folder / "x.txt").write_text("\n\n".join(DOCUMENTS))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    parquet.write_table(pa.Table.from_pylist(rows), folder / "x.parquet")
    return folder


def text(path, *overrides):
    return ("data=text", f"data.path='{path}'", *SHUFFLED, *overrides)


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
    """A run on plain text that nothing interrupts."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    return run_plan(tiny_config(run_dir, *LONG, *text(files / "x.txt"))).run_dir


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        pytest.param("x.jsonl.gz", (), marks=pytest.mark.slow),
        pytest.param("x.parquet", (), marks=pytest.mark.slow),
        ("x.txt", ("data.streaming=true",)),
        pytest.param("x.jsonl.gz", ("data.streaming=true",), marks=pytest.mark.slow),
    ],
)
def test_the_same_documents_are_the_same_run(name, overrides, files, whole, tmp_path):
    config = tiny_config(tmp_path / "run", *LONG, *text(files / name, *overrides))
    assert_same_run(whole, run_plan(config).run_dir)


@pytest.mark.parametrize("streaming", ["true", *slow("false")])
def test_a_dataset_of_the_same_documents_is_the_same_run(
    streaming, files, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "x.parquet").write_bytes((files / "x.parquet").read_bytes())
    settings = ("data=huggingface", f"data.name='{tmp_path}/dataset'", *SHUFFLED)
    config = tiny_config(tmp_path / "run", *LONG, *settings, f"data.streaming={streaming}")
    assert_same_run(whole, run_plan(config).run_dir)


def test_another_window_is_another_run(files, whole, tmp_path):
    settings = (*text(files / "x.txt"), "data.shuffle_window=1")
    run = run_plan(tiny_config(tmp_path / "run", *LONG, *settings))
    assert history(run.run_dir) != history(whole)


def test_a_streamed_run_that_is_terminated_goes_on(files, whole, tmp_path):
    settings = (*LONG, *text(files / "x.parquet", "data.streaming=true"))
    for step in (5, 6, 17):
        resume = [f"resume='{tmp_path}/run'"] if step > 5 else []
        with pytest.raises(Interrupted):
            run_plan(tiny_config(tmp_path / "run", *settings, *resume), [SignalAt(step)])
    resumed = run_plan(tiny_config(tmp_path / "run", *settings, f"resume='{tmp_path}/run'"))
    assert_same_run(whole, resumed.run_dir)


def start(folder, *overrides):
    return subprocess.Popen(
        [sys.executable, "-m", "growlm.train", *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def finish(process, code=0):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return output


@pytest.mark.slow
def test_a_streamed_mixture_that_is_killed_goes_on(files, tmp_path):
    """With SIGKILL, as a process; compared with a run that is neither streamed nor killed."""
    mixture = (
        "data=mixture",
        f"data.sources.mine.path={files}/x.jsonl.gz",
        "data.sources.mine.weight=30",
        "data.sources.stories.documents=12",
        *SHUFFLED,
        "logger=none",
    )
    whole = start(tmp_path, *LONG, *mixture, "run_dir=whole")
    streamed = (*LONG, *mixture, "data.streaming=true", "checkpoint.every_steps=2", "run_dir=run")
    process = start(tmp_path, *streamed)
    resume = tmp_path / "run" / "resume"
    deadline = time.monotonic() + 120
    while not list(resume.glob("00000001[5-9]/state.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert not (tmp_path / "run" / "summary.json").exists()
    newest = max(resume.glob("0*/state.json"))
    mark = json.loads(newest.read_text())["data"]
    assert mark["sample"] == 32 * int(newest.parent.name)
    assert max((place["epoch"], place["chunk"]) for place in mark["places"]) > (0, 0)
    finish(whole)
    output = finish(start(tmp_path, "resume=run"))
    assert "skipping to where the run stopped" not in output
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_stream_begins_after_the_phases_of_another_run(files, whole, tmp_path):
    reuse = ("reuse.phases=always", f"reuse.folder='{tmp_path}/phases'")
    settings = (*LONG, *text(files / "x.txt", "data.streaming=true"), *reuse)
    run_plan(tiny_config(tmp_path / "first", *settings, "growth.noise_std=3e-2"))
    second = run_plan(tiny_config(tmp_path / "second", *settings))
    assert second.summary.reused.phases == ["dense", "moe"]
    assert_same_run(whole, second.run_dir)


@pytest.mark.parametrize("change", ["edit", "touch", "add"])
def test_a_stream_whose_files_changed_does_not_go_on(change, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    file = folder / "x.txt"
    file.write_text("\n\n".join(DOCUMENTS))
    settings = ("data=text", f"data.path='{folder}'", *STREAMED)
    with pytest.raises(Interrupted):
        run_plan(tiny_config(tmp_path / "run", *settings), [SignalAt(2)])
    if change == "edit":
        file.write_text(file.read_text().replace("fox", "dog"))
    elif change == "touch":
        os.utime(file, (1, 1))
    else:
        (folder / "y.txt").write_text("more")
    with pytest.raises(
        UserError, match=r"data\.path=.*the text has changed .*size and modification time"
    ):
        run_plan(tiny_config(tmp_path / "run", *settings, f"resume='{tmp_path}/run'"))


@pytest.mark.slow
def test_a_stream_whose_file_was_edited_under_its_old_time_is_warned_of(tmp_path, capsys):
    file = tmp_path / "x.txt"
    file.write_text("\n\n".join(DOCUMENTS))
    reuse = ("reuse.phases=always", f"reuse.folder='{tmp_path}/phases'")
    settings = ("data=text", f"data.path='{file}'", *STREAMED)
    with pytest.raises(Interrupted):
        run_plan(tiny_config(tmp_path / "run", *settings, *reuse), [SignalAt(2)])
    run_plan(tiny_config(tmp_path / "other", *settings, *reuse))
    before = file.stat()
    with file.open("r+") as opened:
        opened.write("THE")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    capsys.readouterr()
    run_plan(tiny_config(tmp_path / "run", *settings, *reuse, f"resume='{tmp_path}/run'"))
    assert "edited with its old modification time restored" in " ".join(
        capsys.readouterr().out.split()
    )
    again = run_plan(tiny_config(tmp_path / "again", *settings, *reuse))
    assert again.summary.reused is None


def test_the_cache_may_move_and_a_mixtures_files_too(files, tmp_path):
    moved = tmp_path / "moved.jsonl.gz"
    moved.write_bytes((files / "x.jsonl.gz").read_bytes())
    mixture = ("data=mixture", "data.sources.stories.documents=60", *SHUFFLED)
    settings = (*mixture, f"data.sources.mine.path='{files}/x.jsonl.gz'")
    with pytest.raises(Interrupted):
        run_plan(tiny_config(tmp_path / "run", *settings), [SignalAt(2)])
    later = (*mixture, f"data.sources.mine.path='{moved}'", f"data.cache='{tmp_path}/cache'")
    run_plan(tiny_config(tmp_path / "run", *later, f"resume='{tmp_path}/run'"))
    whole = run_plan(tiny_config(tmp_path / "whole", *settings))
    assert_same_run(whole.run_dir, tmp_path / "run")
