"""An error is reported as what it is, not as one that the same place often raises."""

import types

import pytest
import tiktoken
import torch

from growlm.checkpoint import resume_state
from growlm.checkpoint.resume_state import CALLBACKS_FILE, ResumeState
from growlm.data.tokenization.tokenizer import load_tokenizer
from growlm.runtime.errors import DiskError, UserError
from growlm.training.resume.state_schema import translate_restore_errors

FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyError("x"), UserError),
        (RuntimeError("shapes differ"), UserError),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
        (RuntimeError("can't allocate memory: 9 bytes"), RuntimeError),
        (DiskError("here", FULL), DiskError),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_only_what_does_not_fit_a_run_is_said_not_to(error, expected, tmp_path):
    with pytest.raises(expected) as caught, translate_restore_errors(tmp_path):
        raise error
    assert type(caught.value) is expected


@pytest.mark.parametrize("broken", ["load", "zip"])
def test_a_state_of_callbacks_that_cannot_be_read_is_not_said_to_hold_code(
    broken, tmp_path, monkeypatch
):
    torch.save({"a": {"n": 1}}, tmp_path / CALLBACKS_FILE)
    state = types.SimpleNamespace(folder=tmp_path)
    assert ResumeState.load_callbacks(state) == {"a": {"n": 1}}

    def fail(path, **_):
        raise OSError(5, "Input/output error", str(path))

    owner, name = (torch, "load") if broken == "load" else (resume_state.zipfile, "ZipFile")
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(UserError, match=r"cannot be read: .*Input/output error"):
        ResumeState.load_callbacks(state)
    monkeypatch.undo()
    torch.save({"a": object()}, tmp_path / CALLBACKS_FILE)
    with pytest.raises(UserError, match="must hold only tensors and plain values"):
        ResumeState.load_callbacks(state)


def test_a_full_cache_of_a_tokenizer_is_not_a_missing_network(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))

    def fail(name):
        raise OSError(28, "No space left on device", str(tmp_path / name))

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    with pytest.raises(UserError, match=r"cannot be cached: .*gpt2: No space left on device; set"):
        load_tokenizer("gpt2")
