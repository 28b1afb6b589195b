"""Phases that another run has trained: the same to the bit, and one process trains while the others wait."""

import csv
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from lightning.pytorch import Callback

from growlm.config import load_config
from growlm.config.phase_plan import make_plan
from growlm.runtime.errors import UserError
from growlm.runtime.hardware import Machine
from growlm.storage.lru_directory import get_folder_size
from growlm.training import Interrupted, phase_runner, run_plan
from growlm.training.resume.fingerprint import compute_phase_cache_keys
from growlm.training.run_folder import RunFingerprint
from tests.data.test_huggingface_tokenizer import byte_level, write
from tests.training.stopping import SignalAt, assert_same_run, slow
from tests.training.tiny_run import TINY, rows, tiny_config, tiny_run, used

OTHER_NOISE = "growth.noise_std=3e-2"
MACHINE = Machine("cpu", "32-true", 0)


def sharing(folder, *overrides):
    return (f"reuse.folder='{folder}'", "reuse.phases=always", *overrides)


def reused(run_dir):
    return json.loads((run_dir / "summary.json").read_text())["reused"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("plain") / "run", OTHER_NOISE).run_dir


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    return tiny_run(folder / "run", *sharing(folder / "cache")).run_dir


@pytest.fixture
def cache(tmp_path, first):
    return shutil.copytree(first.with_name("cache"), tmp_path / "cache")


def test_artefacts_carry_the_tokenizer_of_their_own_run(tmp_path):
    folder = write(tmp_path / "tokenizer", byte_level)
    tokenizer = ("tokenizer=huggingface", f"tokenizer.path='{folder}'")
    for template in ("one", "another"):
        (folder / "chat_template.jinja").write_text(template)
        two_phases = ("~phases.wide", "~phases.deep")
        settings = sharing(tmp_path / "cache", *tokenizer, *two_phases)
        run_dir = tiny_run(tmp_path / template, *settings).run_dir
        assert reused(run_dir) is None
        artefact = run_dir / "checkpoints" / "dense_model"
        assert (artefact / "chat_template.jinja").read_text() == template


def test_what_is_reused_ends_in_the_same_run(tmp_path, first, cache, plain):
    assert reused(first) is None
    second = tiny_run(tmp_path / "second", *sharing(cache), OTHER_NOISE).run_dir
    record = reused(second)
    assert record["phases"] == ["dense", "moe"]
    assert record["run"] == str(first)
    assert record["seconds"] > 0
    assert_same_run(second, plain)
    times = [row["time_s"] for row in rows(second)]
    assert times == sorted(times)


def test_without_it_nothing_is_kept(tmp_path):
    tiny_run(tmp_path / "run", f"reuse.folder='{tmp_path / 'cache'}'")
    assert not (tmp_path / "cache").exists()


def test_a_run_that_reused_is_stopped_and_goes_on(tmp_path, cache, plain, monkeypatch):
    config = tiny_config(tmp_path / "second", *sharing(cache), OTHER_NOISE)
    # A callback given to the run would keep it from reusing anything.
    monkeypatch.setattr(
        phase_runner, "build_extra_callbacks", lambda _: {"stop": SignalAt(global_step=10)}
    )
    with pytest.raises(Interrupted):
        run_plan(config)
    monkeypatch.undo()
    assert (tmp_path / "second" / "resume" / "000000010").is_dir()
    second = run_plan(replace(config, resume=str(tmp_path / "second"))).run_dir
    assert reused(second)["phases"] == ["dense", "moe"]
    assert_same_run(second, plain)
    # It has gone on to train, and to keep, what follows.
    third = tiny_run(tmp_path / "third", *sharing(cache), OTHER_NOISE, "growth.extra_layers=2")
    assert reused(third.run_dir)["phases"] == ["dense", "moe", "wide"]


@pytest.mark.parametrize(
    ("changed", "kept"), [pytest.param("stop", 0, marks=pytest.mark.slow), ("skip", 3)]
)
def test_what_was_begun_under_other_keys_is_not_kept(tmp_path, monkeypatch, changed, kept):
    """What may change when a run goes on may still matter to others, as skipped steps do."""
    folder = tmp_path / "cache"
    config = tiny_config(tmp_path / "run", *sharing(folder), "trainer.on_nonfinite=skip")
    monkeypatch.setattr(
        phase_runner, "build_extra_callbacks", lambda _: {"stop": SignalAt(global_step=2)}
    )
    with pytest.raises(Interrupted):
        run_plan(config)
    monkeypatch.undo()
    trainer = replace(config.trainer, on_nonfinite=changed)
    run_plan(replace(config, resume=str(tmp_path / "run"), trainer=trainer))
    assert len(list(folder.glob("[0-9a-f]*"))) == kept


def test_a_users_callback_misses_nothing(tmp_path, cache):
    second = run_plan(tiny_config(tmp_path / "second", *sharing(cache)), callbacks=[Callback()])
    assert reused(second.run_dir) is None


@pytest.mark.parametrize(
    "victim", ["state/model.safetensors", *slow("training_history.jsonl", "origin.json")]
)
def test_a_damaged_entry_is_trained_again(tmp_path, cache, plain, victim, capsys):
    for path in cache.glob(f"*/{victim}"):
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        path.unlink()  # it is linked
        path.write_bytes(damaged)
    second = tiny_run(tmp_path / "second", *sharing(cache), OTHER_NOISE).run_dir
    assert reused(second) is None
    assert "is damaged" in capsys.readouterr().out
    assert_same_run(second, plain)
    third = tiny_run(tmp_path / "third", *sharing(cache), OTHER_NOISE).run_dir
    assert reused(third)["phases"] == ["dense", "moe", "wide"]
    assert_same_run(third, plain)


@pytest.mark.slow
def test_what_is_kept_is_bounded(tmp_path, cache, capsys):
    def entries():
        return {path.name for path in cache.glob("[0-9a-f]*")}

    def size(names):
        seen = set()  # several entries have links to one file
        return sum(get_folder_size(cache / name, seen) for name in names)

    before = entries()
    assert len(before) == 3
    bound = size(before) * 1.2
    tiny_run(tmp_path / "second", *sharing(cache), "seed=1", f"reuse.max_gb={bound / 1e9}")
    assert len(entries() - before) >= 2
    assert size(entries()) <= bound
    tiny_run(tmp_path / "third", *sharing(tmp_path / "small"), "reuse.max_gb=1e-6")
    assert "not cached for reuse" in capsys.readouterr().out
    assert not list((tmp_path / "small").glob("[0-9a-f]*"))


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"reuse\.folder"):
        tiny_run(tmp_path / "run", *sharing(tmp_path / "file"))


@lru_cache
def config_and_plan(*overrides):
    config = load_config(*used(TINY, overrides), *overrides)
    return config, make_plan(config, 257)


def keys(*overrides):
    circumstances = RunFingerprint("tokens", "cpu", "32-true")
    return compute_phase_cache_keys(*config_and_plan(*overrides), MACHINE, circumstances)


@pytest.mark.parametrize(
    ("override", "shared"),
    [
        ("growth.noise_std=1e-3", 2),
        ("growth.extra_layers=2", 3),
        ("phases.deep.lr=1e-5", 3),
        ("phases.wide.optimizer_state=reset", 2),
        ("logger.project=other", 3),
        ("run_dir=elsewhere", 3),
        ("checkpoint.every_steps=2", 3),
        ("phases.deep.steps=5", 3),  # the rate falls in the last phase only
        ("phases.deep.steps=1", 2),  # now in the one before, too
        ("schedule.final_fraction=0.2", 3),
        ("schedule.warmup_steps=3", 0),
        ("seed=1", 0),
        ("phases.dense.lr=1e-5", 0),
        ("optimizer.weight_decay=0", 0),
        ("callbacks.log_every=1", 0),
        ("model.n_layers=3", 0),
        ("checkpoint.save_optimizer=true", 0),
        ("sequence_length=16", 0),
    ],
)
def test_a_key_covers_what_came_before(override, shared):
    one, other = keys(), keys(override)
    assert len(one) == 3
    assert len(set(one)) == 3
    equal = [a == b for a, b in zip(one, other, strict=True)]
    assert sum(equal) == shared, equal
    assert equal == sorted(equal, reverse=True)


OWN_OPERATOR = """
from dataclasses import dataclass
from growlm.growth import Deepen, register_operator

@register_operator("own_{name}")
@dataclass
class Own(Deepen):
    layers: int = 1
"""


def test_a_key_covers_the_code_of_an_own_operator(tmp_path, monkeypatch, own_registry):
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "own_cached_operator.py"
    file.write_text(OWN_OPERATOR.format(name="cached"))
    importlib.import_module(file.stem)
    plan = "phases.wide.grow=[{own_cached: {layers: 2}}]"
    before = keys(plan)
    assert keys(plan) == before
    file.write_text(file.read_text() + "# changed")
    assert [a == b for a, b in zip(before, keys(plan), strict=True)] == [True, True, False]


@pytest.mark.parametrize(
    "name",
    [
        "ATEN_CPU_CAPABILITY",
        "CUBLAS_WORKSPACE_CONFIG",
        "DNNL_MAX_CPU_ISA",
        "MKL_CBWR",
        "MKL_DYNAMIC",
        "NVIDIA_TF32_OVERRIDE",
        "OMP_DYNAMIC",
        "ONEDNN_DEFAULT_FPMATH_MODE",
        "ONEDNN_MAX_CPU_ISA",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    ],
)
def test_a_key_covers_what_chooses_kernels(name, monkeypatch):
    monkeypatch.delenv(name, raising=False)
    before = keys()
    monkeypatch.setenv(name, "AVX2")
    assert not set(keys()) & set(before)
    monkeypatch.delenv(name)
    assert keys() == before


SWITCHES = {
    "deterministic": (torch.use_deterministic_algorithms, True, False),
    "matmul": (torch.set_float32_matmul_precision, "medium", "highest"),
    "dtype": (torch.set_default_dtype, torch.float64, torch.float32),
    "denormal": (torch.set_flush_denormal, True, False),
    "mkldnn": (lambda on: torch.backends.mkldnn.set_flags(on), False, True),
    "tf32": (lambda on: setattr(torch.backends.cuda.matmul, "allow_tf32", on), True, False),
    "sdp": (torch.backends.cuda.enable_flash_sdp, False, True),
    "threads": (torch.set_num_threads, 3, torch.get_num_threads()),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_a_key_covers_torchs_switches(name):
    switch, other, usual = SWITCHES[name]
    switch(usual)
    before = keys()
    try:
        switch(other)
        changed = keys()
    finally:
        switch(usual)
    assert not set(changed) & set(before)
    assert keys() == before


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "ONEDNN_VERBOSE", "TORCHINDUCTOR_CACHE_DIR"])
def test_a_key_leaves_out_what_changes_nothing(name, monkeypatch):
    monkeypatch.delenv(name, raising=False)
    before = keys()
    monkeypatch.setenv(name, "1")
    assert keys() == before


@pytest.mark.slow
def test_phases_of_other_instructions_are_not_reused(tmp_path, monkeypatch):
    """Nor those of the machine's own by a run under a limit."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    overrides = (*sharing(tmp_path / "cache"), "trainer.precision=32-true")
    plain = tiny_run(tmp_path / "plain", *overrides)
    with monkeypatch.context() as limited:
        limited.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        assert reused(tiny_run(tmp_path / "limited", *overrides).run_dir) is None
        again = tiny_run(tmp_path / "limited_again", *overrides)
        assert reused(again.run_dir)["run"] == str(tmp_path / "limited")
    again = tiny_run(tmp_path / "plain_again", *overrides)
    assert reused(again.run_dir)["run"] == str(plain.run_dir)


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("data.sources.mine.path=b.txt", True),  # the tokens are in the key
        ("data.sources.mine.column=story", False),
        ("data.sources.mine.weight=2", False),
    ],
)
def test_where_a_mixtures_files_lie_does_not_matter(override, same):
    mixture = ("data=mixture", "data.sources.mine.path=a.txt")
    assert (keys(*mixture) == keys(*mixture, override)) == same


def start(folder, name, cache, *overrides):
    command = [sys.executable, "-m", "growlm.train", *TINY, "logger=none", f"run_dir={name}"]
    return subprocess.Popen(
        [*command, *sharing(cache), *overrides],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_one_trains_while_others_wait_also_when_it_is_killed(tmp_path):
    longer = ["phases.dense.steps=120", "callbacks.log_every=50"]
    first = start(tmp_path, "first", "cache", *longer)
    history = tmp_path / "first" / "checkpoints" / "training_history.jsonl"
    deadline = time.monotonic() + 120
    while not history.exists() or '"step": 50' not in history.read_text():
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGSTOP)  # so that it is still at it when the others come
    noises = ("1e-3", "2e-3")
    others = [
        start(tmp_path, f"noise{noise}", "cache", *longer, f"growth.noise_std={noise}")
        for noise in noises
    ]
    while not all((tmp_path / f"noise{noise}" / "plan.json").exists() for noise in noises):
        assert all(other.poll() is None for other in others)
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    outs = [other.communicate(timeout=300) for other in others]
    assert [other.returncode for other in others] == [0, 0], outs
    assert any("waiting for dense, which process" in out for out, _ in outs)
    records = [reused(tmp_path / f"noise{noise}") for noise in noises]
    trained, taken = sorted(records, key=lambda record: record is not None)
    assert trained is None
    assert taken["phases"] == ["dense", "moe"]


@pytest.mark.slow
def test_another_logger_hears_what_was_trained_before_it(tmp_path, cache):
    second = tiny_run(tmp_path / "second", *sharing(cache), OTHER_NOISE, "logger=csv").run_dir
    alone = tiny_run(tmp_path / "alone", OTHER_NOISE, "logger=csv").run_dir
    tables = []
    for run_dir in (second, alone):
        with (run_dir / "csv" / "metrics.csv").open() as file:
            tables.append(list(csv.DictReader(file)))
    assert len(tables[0]) == len(tables[1]) > 12
    for row, expected in zip(*tables, strict=True):
        timed = {key for key in expected if key.startswith("perf/") or key == "progress/time_s"}
        assert {k: row[k] for k in expected if k not in timed} == {
            k: expected[k] for k in expected if k not in timed
        }
