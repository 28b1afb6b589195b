"""Read the record that a run's folder keeps of how the run began."""

from __future__ import annotations

from pathlib import Path
from typing import NotRequired, TypedDict

from growlm.checkpoint.resume_state import RESUME_SETTING
from growlm.runtime.errors import UserError
from growlm.storage.input_files import check_inside_root, hash_input_file, lexists
from growlm.storage.integrity import read_checksummed_json

CONFIG_FILE = "config.yaml"
RUN_RECORD_FILE = "run.json"
SUMMARY_FILE = "summary.json"


class RunRecord(TypedDict):
    """The contents of `resume/run.json`."""

    id: str
    config: str
    """Checksum of `config.yaml`."""
    former_config: NotRequired[str]
    """Checksum of `config.yaml` before the run was extended; valid if that was interrupted."""
    data: str
    accelerator: str
    precision: str
    weights: NotRequired[str | None]
    processor: NotRequired[str | None]
    newest_inode_change: NotRequired[int | None]
    evaluation: NotRequired[dict[str, str] | None]


def _explain_missing_run(path: Path) -> str:
    """Return why a folder is not that of a run, and what a model or a part of a run is good for."""
    reason = f"is not a run folder: it has no resume/{RUN_RECORD_FILE}"
    for run in path.absolute().parents[:2]:
        if lexists(run / "resume" / RUN_RECORD_FILE):
            return f"{reason}; it lies in one: resume={run}"
    if lexists(path / "config.json"):
        return f"{reason}; to train a model on: model=pretrained model.path={path}"
    return reason


def read_run_record(path: Path) -> RunRecord:
    """Read the record that a run wrote when it began, and check that its config file is unchanged.

    Raises:
        UserError: If the folder is not a run folder, or its files are damaged.
    """
    for name in ("checkpoints", "resume"):
        check_inside_root(path / name, RESUME_SETTING, path)
    if not lexists(path / "resume" / RUN_RECORD_FILE):
        raise UserError(RESUME_SETTING, path, _explain_missing_run(path))
    record: RunRecord = read_checksummed_json(
        path / "resume" / RUN_RECORD_FILE, RESUME_SETTING, path, RunRecord
    )
    valid = (record["config"], record.get("former_config"))
    if hash_input_file(path / CONFIG_FILE, RESUME_SETTING, path) not in valid:
        raise UserError(
            RESUME_SETTING, path / CONFIG_FILE, "is damaged: its checksum does not match"
        )
    return record
