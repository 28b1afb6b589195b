"""Systems that lack what Linux has: simulated by taking it away."""

import errno
import json
import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from growlm.checkpoint.phase_cache import _link
from growlm.data.memory_map import map_array, release_pages
from growlm.planner import calibration
from growlm.runtime import hardware, memory
from growlm.runtime.errors import UserError
from growlm.runtime.hardware import Machine, describe_processor, fingerprint_processor
from growlm.storage import locks
from growlm.storage.locks import LockedError, acquire_lock, wait_for_lock
from tests.training.tiny_run import TINY

PHYSICAL = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
LACKING = """
import builtins, ctypes, io, mmap, os, signal, sys

really_open = io.open
def open_elsewhere(file, *arguments, **settings):
    if str(file).startswith(("/proc/", "/sys/")):
        raise FileNotFoundError(2, "No such file or directory", str(file))
    return really_open(file, *arguments, **settings)
io.open = builtins.open = open_elsewhere

class OtherLibrary(ctypes.CDLL):
    def __getattr__(self, name):
        if name in ("mallopt", "malloc_trim"):
            raise AttributeError(name)
        return super().__getattr__(name)
ctypes.CDLL = OtherLibrary

del os.sched_getaffinity, os.sched_setaffinity, mmap.MADV_DONTNEED
"""
"""As on macOS."""
LACKING_MORE = f"""
import datasets, lightning.pytorch  # need os.uname and fcntl where sys.platform is linux
{LACKING}
del os.uname, os.sysconf, os.link, signal.SIGUSR2
sys.modules["fcntl"] = sys.modules["resource"] = None
"""
"""As on Windows, but for what Python itself needs."""
MEASURED = """
from growlm.planner import calibration
calibration.measure_calibration = lambda machine: calibration.Calibration(*[1e9] * 6, call=1e-5)
"""
"""Measuring takes longer than all else."""
TRAIN = f"{MEASURED}import growlm.train; growlm.train.main()"
PLAN = f"{MEASURED}import growlm.plan; growlm.plan.main()"


def python(code, *arguments, folder):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_run_without_proc_and_glibc_finishes(tmp_path):
    done = python(LACKING + TRAIN, *TINY, "logger=none", "run_dir=run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["phases"][-1]["peak_memory_bytes"] > 10**8


@pytest.mark.slow
def test_the_planner_then_reckons_with_all_memory_of_the_machine(tmp_path):
    done = python(LACKING + PLAN, *TINY, "format=json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["memory_limit"] == PHYSICAL


@pytest.mark.slow
def test_a_run_with_even_less_asks_for_the_memory_and_finishes(tmp_path):
    short = [o.replace("steps=4", "steps=1") for o in TINY]
    arguments = [*short, "logger=none", "run_dir=run"]
    refused = python(LACKING_MORE + TRAIN, *arguments, folder=tmp_path)
    assert refused.returncode == 2
    (message,) = refused.stderr.splitlines()
    assert message.startswith("error: trainer.memory_gb=null: ")
    assert not list(tmp_path.iterdir())
    done = python(LACKING_MORE + TRAIN, *arguments, "trainer.memory_gb=2", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("warning: file locks are not supported here")
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
def test_every_command_says_in_one_line_that_windows_is_not_supported(tmp_path):
    commands = ("train", "plan", "grow", "verify", "generate", "evaluate", "convert", "report")
    code = f"""
{LACKING_MORE}
from importlib import import_module
mains = [import_module("growlm." + name).main for name in {commands}]
sys.platform = "win32"
for main in mains:
    sys.argv = ["growlm", "source=nowhere"]
    try:
        main()
    except SystemExit as ended:
        assert ended.code == 2, ended
"""
    done = python(code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(commands)
    assert set(lines) == {
        "error: platform=win32: growlm runs on Linux and macOS; on Windows, run it inside WSL"
    }
    assert not list(tmp_path.iterdir())


@pytest.fixture
def nothing_readable(monkeypatch):
    """No file of /proc and /sys."""
    monkeypatch.setattr(memory, "_read_lines", lambda path: [])


def test_without_meminfo_free_memory_is_that_of_the_machine(nothing_readable, monkeypatch):
    assert memory.free_memory_bytes("cpu") == PHYSICAL
    assert memory.memory_limit_bytes(None, "cpu") == PHYSICAL
    monkeypatch.setattr(os, "sysconf", lambda name: -1)
    assert memory.free_memory_bytes("cpu") is None
    with pytest.raises(UserError, match=r"trainer\.memory_gb=null: must be set"):
        memory.memory_limit_bytes(None, "cpu")
    assert memory.memory_limit_bytes(1, "cpu") == 10**9
    assert min(calibration._measure_memory_rates(Machine("cpu", "32-true", 10**9))) > 0


@pytest.mark.parametrize(("system", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_the_units_of_the_system(nothing_readable, monkeypatch, system, unit):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=5 * 10**6))
    assert memory.peak_memory_bytes() == memory.resident_memory_bytes() == 5 * 10**6 * unit
    monkeypatch.setattr(memory, "resource", None)
    assert memory.peak_memory_bytes() == 0


@pytest.mark.parametrize("library", ["musl", ""])
def test_another_c_library_is_left_alone(monkeypatch, library):
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: (library, ""))
    monkeypatch.setattr(memory, "ctypes", SimpleNamespace(CDLL=lambda name: pytest.fail(name)))
    memory.keep_freed_memory()
    memory.stop_keeping_freed_memory()


def test_a_processor_has_a_name_without_proc(monkeypatch):
    def no_file(path):
        raise FileNotFoundError(str(path))

    monkeypatch.setattr(hardware.Path, "read_text", no_file)
    machine = Machine("cpu", "32-true", 10**9)
    assert str(torch.cpu.get_capabilities()["cpu_name"]) in fingerprint_processor(machine)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert describe_processor(machine).partition(",")[0]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_worked_on_with_a_warning(
    tmp_path, monkeypatch, capsys, number
):
    def no_locks(file, operation):
        raise OSError(number, os.strerror(number))

    locks._warn_locks_unsupported.cache_clear()
    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    for _ in range(2):
        acquire_lock(tmp_path / "lock").close()
        wait_for_lock(tmp_path / "other").close()
    assert capsys.readouterr().err.count("warning: file locks are not supported here") == 1
    locks._warn_locks_unsupported.cache_clear()


def test_other_errors_of_a_lock_are_errors(tmp_path, monkeypatch):
    def broken(file, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(locks.fcntl, "flock", broken)
    for lock in (acquire_lock, wait_for_lock):
        with pytest.raises(OSError, match="Input/output error"):
            lock(tmp_path / "lock")


def test_a_lock_names_its_process_also_without_uname(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "uname")
    with acquire_lock(tmp_path / "lock"):
        with pytest.raises(LockedError) as locked:
            acquire_lock(tmp_path / "lock")
        assert locked.value.owner == f"process {os.getpid()} on {locks.platform.node()}"


def test_pages_stay_where_they_cannot_be_given_back(tmp_path, monkeypatch):
    import mmap

    import numpy as np

    monkeypatch.delattr(mmap, "MADV_DONTNEED")
    (tmp_path / "file").write_bytes(bytes(range(8)))
    array = map_array(tmp_path / "file", np.dtype(np.uint8))
    release_pages(array)
    assert array.tolist() == list(range(8))


def test_files_are_copied_where_there_are_no_links(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "link")
    (tmp_path / "source").write_text("text")
    _link(str(tmp_path / "source"), str(tmp_path / "target"))
    assert (tmp_path / "target").read_text() == "text"
