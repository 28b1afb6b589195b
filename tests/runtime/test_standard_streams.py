"""Standard output that cannot be written or encoded: what prints ends, what trains or writes files does not."""

import contextlib
import errno
import io
import os
import signal
import sys

import pytest

from growlm.runtime import exit_codes
from growlm.runtime.exit_codes import run_and_get_exit_code, run_main_and_exit
from growlm.runtime.output_streams import (
    OutputLostError,
    OutputStream,
    make_encodable,
    output_may_be_lost,
    protect_streams,
)
from growlm.runtime.signals import GracefulStop, Interrupted, list_optional_stop_signals
from growlm.training import run_plan
from tests.training.stopping import SignalAt
from tests.training.tiny_run import tiny_config


class FailingOutput(io.RawIOBase):
    """An output of which every second write fails, or all."""

    def __init__(self, number, every=2):
        self.number, self.every, self.calls, self.written = number, every, 0, b""

    def writable(self):
        return True

    def write(self, data):
        self.calls += 1
        if self.calls % self.every == 0:
            raise OSError(self.number, os.strerror(self.number))
        self.written += bytes(data)
        return len(data)


def text(raw, encoding="utf-8"):
    return io.TextIOWrapper(io.BufferedWriter(raw, 64), encoding=encoding, write_through=True)


@pytest.fixture
def stdout(monkeypatch):
    """Replaces standard output, and returns what it writes to."""

    def replace(number, every=1, encoding="utf-8"):
        raw = FailingOutput(number, every)
        stream = text(raw, encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        streams.append((raw, stream))
        return raw

    streams = []
    yield replace
    for raw, stream in streams:
        raw.every = 1 << 60
        with contextlib.suppress(OSError):
            stream.close()


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", "a → b × é ?"),
        ("latin-1", "a -> b × é ?"),
        ("ascii", "a -> b x ? ?"),
        (None, "a → b × é ?"),
    ],
)
def test_what_an_encoding_lacks_is_replaced(encoding, expected):
    assert make_encodable("a → b × é \ud800", encoding) == expected


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [
        (errno.EPIPE, 141, ""),
        (
            errno.ENOSPC,
            1,
            "stopped: the output cannot be written: No space left on device\n",
        ),
    ],
)
def test_what_prints_its_result_ends(number, code, told, stdout, capsys):
    stdout(number)
    heard = []

    def body():
        print("result " * 20, flush=True)
        heard.append("went on")
        return 0

    assert run_and_get_exit_code(body) == code
    assert capsys.readouterr().err == told
    assert not heard


def test_the_last_flush_counts(stdout, capsys):
    stdout(errno.ENOSPC)
    assert run_and_get_exit_code(lambda: print("result") or 0) == 1
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EAGAIN])
def test_what_writes_files_goes_on_with_one_warning(number, stdout, capsys):
    stdout(number)

    def body():
        with output_may_be_lost():
            for _ in range(3):
                print("progress " * 20, flush=True)
        return 0

    assert run_and_get_exit_code(body) == 0
    err = capsys.readouterr().err
    assert err.startswith("warning: standard output cannot be written (")
    assert err.count("\n") == 1


def test_standard_error_is_no_reason_to_stop(monkeypatch, stdout):
    raw = FailingOutput(errno.ENOSPC, 1)
    monkeypatch.setattr(sys, "stderr", text(raw))
    stdout(errno.ENOSPC, 1 << 60)
    assert run_and_get_exit_code(lambda: print("note", file=sys.stderr, flush=True) or 0) == 0
    assert raw.calls > 0
    raw.every = 1 << 60


def test_a_stream_has_one_wrapper_and_its_own_attributes():
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        with protect_streams():
            first = sys.stdout
        with protect_streams(), protect_streams():
            assert sys.stdout is first
            assert isinstance(first, OutputStream)
            assert sys.stdout.getvalue() == ""
        assert sys.stdout is stream


def test_a_closed_stream_is_no_error():
    stream = io.StringIO()
    stream.close()
    output = OutputStream(stream, is_optional=False)
    output.write("text")
    output.flush()
    assert not output.isatty()


def test_a_lost_result_is_no_file_error():
    assert not issubclass(OutputLostError, OSError)


def test_a_run_with_growths_ends_on_a_narrow_output_that_fails(stdout, tmp_path, capsys):
    raw = stdout(errno.EIO, every=3, encoding="ascii")
    run = run_plan(tiny_config(tmp_path / "run"))
    assert (run.run_dir / "summary.json").exists()
    assert b" -> " in raw.written
    assert raw.written.isascii()
    assert raw.calls > 30
    assert capsys.readouterr().err.count("standard output cannot be written") == 1


def test_a_hangup_writes_a_state_without_an_output(stdout, tmp_path, capsys, hangup):
    stdout(errno.EPIPE)
    hangup(signal.SIG_DFL)
    run_dir = tmp_path / "run"
    with pytest.raises(Interrupted) as stopped:
        run_plan(tiny_config(run_dir), [SignalAt(2, signal.SIGHUP)])
    assert stopped.value.code == 129
    assert str(stopped.value) == "stopped by SIGHUP after step 2 of 4 of dense"
    assert (run_dir / "resume" / "000000002" / "manifest.json").exists()
    assert f"To resume: python -m growlm.train resume={run_dir}\n" in capsys.readouterr().err


@pytest.fixture
def hangup():
    before = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, before)


def test_an_ignored_hangup_stays_ignored(hangup):
    hangup(signal.SIG_IGN)
    assert signal.SIGHUP not in list_optional_stop_signals()
    with GracefulStop(None) as stop:
        signal.raise_signal(signal.SIGHUP)
        stop.install_handlers()
        signal.raise_signal(signal.SIGHUP)
        assert stop.requested_exit_code is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_slurm_job_takes_lightnings_signal_too(monkeypatch):
    before = signal.getsignal(signal.SIGUSR1)
    assert before == signal.SIG_DFL
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with GracefulStop(None) as stop:
        stop.is_deferring = True
        signal.raise_signal(signal.SIGUSR1)
        assert stop.requested_exit_code == 128 + signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) == before
    monkeypatch.delenv("SLURM_JOB_ID")
    with GracefulStop(None):
        assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (1, 1), ("text", 0)])
def test_a_number_that_main_returns_is_the_exit_code(result, code, monkeypatch):
    ended = []
    monkeypatch.setattr(exit_codes, "exit_process", ended.append)
    run_main_and_exit(lambda: result)
    assert ended == [code]
