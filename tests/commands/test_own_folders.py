"""Folders that growlm writes to: whatever lies there already, nothing hangs and no other file changes."""

# ruff: noqa: F811 - fixtures are imported

import hashlib
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from growlm.config.composing.resumed_config import load_saved_config
from growlm.data.corpus import open_corpus
from growlm.data.tokenization.parallel_tokenization import TokenizedDocuments
from growlm.data.tokenization.token_cache import TokenCache
from growlm.data.tokenization.tokenizer import load_tokenizer
from growlm.planner import calibration as calibrations
from growlm.planner.calibration import Calibration, load_or_measure_calibration
from growlm.runtime.errors import DiskError, UserError
from growlm.runtime.hardware import detect_machine
from growlm.storage.atomic_files import atomic_write_text, open_for_append
from growlm.storage.integrity import dump_checksummed_json
from growlm.storage.locks import acquire_lock, wait_for_lock
from growlm.training import plan_runner as training_run
from growlm.training import run_plan
from growlm.training import run_setup as prepare
from tests.commands.bounded_commands import bounded, run  # noqa: F401
from tests.commands.hostile_cases import (
    CHECKPOINT,
    FIXTURES,
    GENERATE,
    HUGE,
    copy_fixtures,
    fifo,
    link,
    resealed,
    set_value,
    written,
    zeros,
)
from tests.training.stopping import slow

JOB = "sweep/0_noise_std=0.001"
ENTRY = "phase_cache/55082a7573af8fa46f62eaef92bc8e5e"
SPEED = Calibration(*[1e9] * 6, 1e-6)
"""Of a made-up machine."""


@pytest.mark.parametrize(
    "damage",
    [
        fifo(f"{ENTRY}/origin.json"),
        written(f"{ENTRY}/origin.json", dump_checksummed_json({"x": 1})),
        written(f"{ENTRY}/origin.json", dump_checksummed_json({"run": []})),
        fifo(f"{ENTRY}/training_history.jsonl"),
        link(f"{ENTRY}/artefacts/dense_model/config.json", "/etc/passwd"),
        resealed(written(f"{ENTRY}/state/state.json", "{}"), f"{ENTRY}/state"),
        resealed(set_value(f"{ENTRY}/state/state.json", "phase", "x"), f"{ENTRY}/state"),
        resealed(set_value(f"{ENTRY}/state/state.json", "run", "history", []), f"{ENTRY}/state"),
        resealed(
            set_value(f"{ENTRY}/state/state.json", "run", "seconds", HUGE, raw=True),
            f"{ENTRY}/state",
        ),
        *slow(
            zeros(f"{ENTRY}/origin.json"),
            zeros(f"{ENTRY}/training_history.jsonl"),
            fifo(f"{ENTRY}/state/state.json"),
            fifo(f"{ENTRY}/artefacts/dense_model/model.safetensors"),
        ),
    ],
)
def test_a_phase_that_is_kept_damaged_is_trained_again(
    damage,
    bounded,
    tmp_path,
    monkeypatch,
    capfd,
):
    copy_fixtures(tmp_path)
    damage(tmp_path)
    keys = json.loads((FIXTURES / JOB / "resume" / "phase_keys.json").read_text())["keys"]
    monkeypatch.setattr(training_run, "compute_phase_cache_keys", lambda *_: keys)
    monkeypatch.setattr(prepare, "load_or_measure_calibration", lambda *_: SPEED)
    config = load_saved_config(tmp_path / JOB)
    reuse = replace(config.reuse, folder=str(tmp_path / "phase_cache"))
    config = replace(config, run_dir=str(tmp_path / "run"), reuse=reuse)
    assert run_plan(config).summary.reused is None
    assert "training again" in capfd.readouterr().out


@pytest.fixture
def corpus(tmp_path):
    cache = TokenCache(tmp_path / "tokens", 10**9, print)
    documents = TokenizedDocuments(np.arange(6), np.array([2, 4]), np.array([2, 4]))

    def tokenized():
        return cache.get_or_create({"text": "a"}, np.dtype(np.uint16), 2, lambda: [documents])

    tokenized()
    (entry,) = (path for path in cache.folder.iterdir() if len(path.name) == 32)
    return tokenized, entry.relative_to(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: fifo(f"{entry}/corpus.json"),
        lambda entry: zeros(f"{entry}/manifest.json"),
        lambda entry: fifo(f"{entry}/train.tokens"),
        lambda entry: resealed(written(f"{entry}/corpus.json", "{}"), entry),
        lambda entry: resealed(set_value(f"{entry}/corpus.json", "dtype", "object"), entry),
        lambda entry: resealed(set_value(f"{entry}/corpus.json", "train", "tokens", 1), entry),
        lambda entry: resealed(written(f"{entry}/train.ends", b"abc"), entry),
        lambda entry: resealed(lambda folder: (folder / entry / "validation.ends").unlink(), entry),
    ],
)
def test_a_corpus_that_is_kept_damaged_is_tokenized_again(
    damage,
    corpus,
    bounded,
    tmp_path,
    capsys,
):
    tokenized, entry = corpus
    damage(entry)(tmp_path)
    with pytest.raises(UserError):
        open_corpus(tmp_path / entry, "data.cache")
    assert list(tokenized().train) == [0, 1]
    assert "tokenizing again" in capsys.readouterr().out


@pytest.mark.parametrize(
    "damage",
    [
        fifo("tokens/digests.json"),
        zeros("tokens/digests.json"),
        written("tokens/digests.json", '{"a": 5}'),
        written("tokens/digests.json", "[" * 10**5),
    ],
)
def test_checksums_that_cannot_be_read_are_made_again(damage, bounded, tmp_path):
    (tmp_path / "tokens").mkdir()
    (tmp_path / "a").write_text("text")
    damage(tmp_path)
    cache = TokenCache(tmp_path / "tokens", 10**9, print)
    assert cache.digest(tmp_path / "a")[:8] == "982d9e3e"


@pytest.mark.parametrize(
    "damage",
    [
        fifo("growlm/speed.json"),
        zeros("growlm/speed.json"),
        written("growlm/speed.json", "{}"),
        written("growlm/speed.json", json.dumps({**vars(SPEED), "call": 0})),
        written("growlm/speed.json", json.dumps({**vars(SPEED), "half_flops": "fast"})),
        written("growlm/speed.json", json.dumps({**vars(SPEED), "half_flops": float("nan")})),
        written("growlm/speed.json", "[" * 10**5),
    ],
)
def test_a_speed_that_cannot_be_read_is_measured_again(
    damage,
    bounded,
    tmp_path,
    monkeypatch,
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(calibrations, "measure_calibration", lambda machine: SPEED)
    machine = detect_machine(load_saved_config(FIXTURES / "stopped").trainer, 1)
    measured = []
    assert load_or_measure_calibration(machine, lambda: measured.append(1)) == SPEED
    assert load_or_measure_calibration(machine, lambda: measured.append(1)) == SPEED
    assert len(measured) == 1
    (path,) = (tmp_path / "growlm").iterdir()
    damage(tmp_path)
    (tmp_path / "growlm" / "speed.json").rename(path)
    assert load_or_measure_calibration(machine, lambda: measured.append(1)) == SPEED
    assert len(measured) == 2


@pytest.mark.parametrize("place", [fifo, zeros])
def test_what_lies_in_place_of_a_downloaded_tokenizer(
    place,
    bounded,
    tmp_path,
    monkeypatch,
):
    url = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
    name = hashlib.sha1(url.encode()).hexdigest()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    place(name)(tmp_path)
    with pytest.raises(UserError, match=f"{name}: is a"):
        load_tokenizer("gpt2")


PRECIOUS = "precious"


@pytest.fixture
def precious(tmp_path):
    """A file that nothing may change, and a link to it."""
    (tmp_path / "precious").write_text(PRECIOUS)
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    yield tmp_path / "link"
    assert (tmp_path / "precious").read_text() == PRECIOUS


@pytest.mark.parametrize("take", [acquire_lock, wait_for_lock])
def test_a_lock_is_no_link_and_no_fifo(take, precious, bounded, tmp_path):
    with pytest.raises(OSError, match="is a link"):
        take(precious)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="not a regular file"):
        take(tmp_path / "fifo")


def test_a_file_that_is_written_whole_replaces_a_link(precious, tmp_path):
    precious.rename(tmp_path / ".page.html.partial")
    atomic_write_text(tmp_path / "page.html", "a page")
    assert (tmp_path / "page.html").read_text() == "a page"
    (tmp_path / "page.html").unlink()
    (tmp_path / "page.html").symlink_to(tmp_path / "precious")
    atomic_write_text(tmp_path / "page.html", "a page")
    assert not (tmp_path / "page.html").is_symlink()


def test_a_file_that_is_written_to_at_its_end_is_no_link_and_no_fifo(
    precious,
    bounded,
    tmp_path,
):
    with pytest.raises(DiskError):
        open_for_append(precious)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DiskError):
        open_for_append(tmp_path / "fifo")


def test_links_that_a_user_makes_are_followed(run, tmp_path):
    """To a checkpoint, a run, a file of prompts, a text, and within a folder."""
    copy_fixtures(tmp_path / "elsewhere")
    for name in ("gpt", "checkpoint", "prompts.txt", "text.txt"):
        target = {"checkpoint": CHECKPOINT}.get(name, name)
        (tmp_path / name).symlink_to(tmp_path / "elsewhere" / target)
    (tmp_path / "prompts.txt").write_text("Once\n")
    (tmp_path / "text.txt").write_text("Once upon a time.\n\nThe end.\n")
    checkpoint = tmp_path / "elsewhere" / CHECKPOINT
    (checkpoint / "model.safetensors").rename(checkpoint / "weights")
    (checkpoint / "model.safetensors").symlink_to("weights")
    assert run("report", "gpt")[0] == 0
    arguments = ("checkpoint=checkpoint", "prompts_file=prompts.txt", *GENERATE[3:])
    assert run("generate", *arguments)[0] == 0
    arguments = ("data=text", "data.path=text.txt", "split=all", "sequence_length=4", "device=cpu")
    code, text = run("evaluate", "checkpoint=checkpoint", *arguments)
    assert code == 0, text


@pytest.mark.parametrize("target", ["../../blobs", "../../../elsewhere"])
def test_a_snapshot_of_the_hugging_face_cache(target, run, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    shutil.copytree(FIXTURES / "huggingface" / "llama", snapshot)
    (snapshot / target).mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(snapshot / target / str(number))
        path.symlink_to(f"{target}/{number}")
    code, text = run("generate", f"checkpoint={snapshot}", *GENERATE[2:])
    assert code == (0 if target == "../../blobs" else 2), text
    code, text = run("convert", f"source={snapshot}", "out=ours", "to=growlm")
    assert code == (0 if target == "../../blobs" else 2), text
