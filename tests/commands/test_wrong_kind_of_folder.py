"""A Hugging Face folder where one of ours is meant, and the reverse: what it is, and what to write."""

from pathlib import Path

import pytest

from growlm.checkpoint.checkpoint_folder import read_config
from growlm.checkpoint.run_record import read_run_record
from growlm.config.command_schema import GrowCommand
from growlm.config.load import load_command_config
from growlm.huggingface.config_reading import read_hf_config
from growlm.runtime.errors import UserError

FORMAT_1 = Path(__file__).parents[1] / "fixtures" / "format_1"
THEIRS = FORMAT_1 / "huggingface" / "llama"
OURS = FORMAT_1 / "llama" / "checkpoints" / "dense_model"
HUB = Path("owner/name")

CASES = [
    (read_config, THEIRS, rf"is a Hugging Face .*: python -m growlm\.convert source={THEIRS} out=DIR to=growlm$"),
    (read_config, HUB, r"there is no such folder .*: hf download owner/name --local-dir DIR\)$"),
    (read_config, Path("nowhere"), r"there is no such folder$"),
    (read_hf_config, OURS, r"is a growlm checkpoint, not a Hugging Face model; to=huggingface makes"),
    (read_hf_config, HUB, r"there is no such folder .*: hf download owner/name --local-dir DIR\)$"),
    (read_run_record, OURS, rf"is not a run folder: .*; it lies in one: resume={FORMAT_1}/llama$"),
    (read_run_record, OURS.parent, rf"it lies in one: resume={FORMAT_1}/llama$"),
    (read_run_record, THEIRS, rf"to train a model on: model=pretrained model\.path={THEIRS}$"),
    (read_run_record, Path("nowhere"), r"is not a run folder: it has no resume/run\.json$"),
]  # fmt: skip


@pytest.mark.parametrize(("read", "folder", "message"), CASES)
def test_the_folder_is_named_for_what_it_is(read, folder, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{widen: {scale_factor: 2}}", r"^grow=.*: must be a list .* in brackets: \[\{widen: \.\.\.\}\]$"),
        ("upcycle", r"^grow=upcycle: must be a list of operators, such as \[\{upcycle: \{\}\}\]$"),
        ("3", r"such as \[\{widen: \{scale_factor: 2\}\}\]$"),
    ],
)  # fmt: skip
def test_a_list_of_operators_is_a_list(value, message):
    with pytest.raises(UserError, match=message):
        load_command_config("grow", GrowCommand, ["checkpoint=a", "out=b", f"grow={value}"])
