"""The folder of a run: made once, worked on by one process at a time, found again."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, NotRequired, TypedDict

from omegaconf import OmegaConf

from growlm.checkpoint.resume_state import (
    RESUME_SETTING,
    ResumeState,
    list_state_folders,
    state_folder,
)
from growlm.config.literal import escape_prompt_interpolations
from growlm.config.phase_plan import PlannedPhase
from growlm.config.schema import RunConfig
from growlm.distributed.process_group import DistributedContext
from growlm.runtime.errors import UserError
from growlm.storage.atomic_files import atomic_write_text
from growlm.storage.input_files import check_inside_root, hash_input_file, lexists
from growlm.storage.integrity import dump_checksummed_json, read_checksummed_json
from growlm.storage.locks import LockedError, acquire_lock
from growlm.storage.unique_path import iter_unique_paths
from growlm.training.resume.state_schema import open_state

CONFIG_FILE = "config.yaml"
RUN_RECORD_FILE = "run.json"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class RunFingerprint:
    """What a run depends on beside its config, and must find again to go on exactly."""

    data: str
    """Checksum of all tokens."""
    accelerator: str
    precision: str
    weights: str | None = None
    """Checksum of the weights that the first phase begins with, if they were trained before."""
    processor: str | None = field(default=None, compare=False)
    """In a few words. On another one the run goes on too, but not to the bit."""
    newest_inode_change: int | None = field(default=None, compare=False)
    """See `RunData`. With a later one the run goes on too, after a warning."""


class RunRecord(TypedDict):
    """The contents of `resume/run.json`."""

    id: str
    config: str
    """Checksum of `config.yaml`."""
    data: str
    accelerator: str
    precision: str
    weights: NotRequired[str | None]
    processor: NotRequired[str | None]
    newest_inode_change: NotRequired[int | None]


@dataclass
class RunFolder:
    """A run's folder, locked for as long as this lives by the process that opened it."""

    path: Path
    run_id: str
    fingerprint: RunFingerprint
    lock: BinaryIO | None
    """None in the run's other processes."""

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self.lock is not None:
            self.lock.close()

    @property
    def resume_dir(self) -> Path:
        """Where its states are."""
        return self.path / "resume"

    def state_folder(self, phase: PlannedPhase, step: int) -> Path:
        """Where the state after so many steps of a phase goes."""
        untrained = None if phase.num_steps else phase.index
        return state_folder(self.resume_dir, phase.first_step + step, untrained)

    def load_newest_state(
        self, dist_context: DistributedContext | None = None
    ) -> tuple[ResumeState | None, list[UserError]]:
        """The newest whole state, and why newer ones are none; they are removed.

        Args:
            world: All processes of the run, if it has several, who will read it.

        Raises:
            UserError: If there are states, and none is whole.
        """
        damaged: list[UserError] = []
        folders = list_state_folders(self.resume_dir)
        for folder in reversed(folders):
            try:
                state = open_state(folder, dist_context)
            except UserError as error:
                damaged.append(error)
                continue
            for worse in folders[folders.index(folder) + 1 :]:
                shutil.rmtree(worse)
            return state, damaged
        if damaged:
            raise damaged[0]
        return None, []

    def remove_states(self) -> None:
        """The run is finished."""
        for folder in list_state_folders(self.resume_dir):
            shutil.rmtree(folder)


def create_run_folder(config: RunConfig, fingerprint: RunFingerprint) -> RunFolder:
    """Make the folder that the config names, or the default one; the name of one that is not empty gets a suffix.

    Raises:
        UserError: If it cannot be made.
        DiskError: If it cannot be written; nothing is left.
    """
    path = _create_run_dir(config)
    text = OmegaConf.to_yaml(
        OmegaConf.structured(escape_prompt_interpolations(replace(config, resume=None)))
    )
    run_id = secrets.token_hex(4)
    digest = hashlib.sha256(text.encode()).hexdigest()
    record = {"id": run_id, "config": digest, **asdict(fingerprint)}
    try:
        atomic_write_text(path / CONFIG_FILE, text)
        atomic_write_text(path / "resume" / RUN_RECORD_FILE, dump_checksummed_json(record))
        lock = lock_run(path)
    except BaseException:
        shutil.rmtree(path)
        raise
    return RunFolder(path, run_id, fingerprint, lock)


def open_run_folder(path: Path) -> RunFolder:
    """The folder of a run that has stopped.

    Raises:
        UserError: If there is none, its files are damaged, it has finished, or another process works on it.
    """
    record = read_run_record(path)
    if (path / SUMMARY_FILE).exists():
        raise UserError(RESUME_SETTING, path, "has finished; there is nothing to go on with")
    circumstances = RunFingerprint(
        record["data"],
        record["accelerator"],
        record["precision"],
        record.get("weights"),
        record.get("processor"),
        record.get("newest_inode_change"),
    )
    folder = RunFolder(path, record["id"], circumstances, lock_run(path))
    _remove_partial_files(path)
    return folder


def _remove_partial_files(path: Path) -> None:
    """Remove what a killed process left in a run's folder."""
    for pattern in (".*.partial", "resume/.*.partial", "checkpoints/.*.partial"):
        for half_written in path.glob(pattern):
            if half_written.is_dir() and not half_written.is_symlink():
                shutil.rmtree(half_written, ignore_errors=True)
            else:
                half_written.unlink(missing_ok=True)
    for lock in (*path.glob("resume/.*.lock"), *path.glob("checkpoints/.*.lock")):
        lock.unlink(missing_ok=True)


def read_run_record(path: Path) -> RunRecord:
    """What a run noted down when it began, its config file being what it was then.

    Raises:
        UserError: If no run began there, or the files are damaged.
    """
    for name in ("checkpoints", "resume"):
        check_inside_root(path / name, RESUME_SETTING, path)
    if not lexists(path / "resume" / RUN_RECORD_FILE):
        raise UserError(
            RESUME_SETTING, path, f"no run began there: it has no resume/{RUN_RECORD_FILE}"
        )
    record: RunRecord = read_checksummed_json(
        path / "resume" / RUN_RECORD_FILE, RESUME_SETTING, path, RunRecord
    )
    if hash_input_file(path / CONFIG_FILE, RESUME_SETTING, path) != record["config"]:
        raise UserError(
            RESUME_SETTING, path / CONFIG_FILE, "is damaged: it is not what was written"
        )
    return record


def lock_run(path: Path) -> BinaryIO:
    """A lock on a run that ends with this process, however it ends.

    Raises:
        UserError: If another process has it, or the folder cannot be written to.
    """
    try:
        return acquire_lock(path / "resume" / "lock")
    except LockedError as error:
        raise UserError(
            RESUME_SETTING, path, f"another process works on it ({error.owner})"
        ) from error
    except OSError as error:
        raise UserError(RESUME_SETTING, path, f"cannot be written to: {error.strerror}") from error


def check_run_dir_writable(config: RunConfig) -> None:
    """Check, before anything that takes long, that the run's folder can be made.

    Raises:
        UserError: If not.
    """
    wanted = _requested_run_dir(config).absolute()
    parent = next(path for path in (*wanted.parents, Path("/")) if path.exists())
    if wanted == parent or not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        allowed = f"cannot be made: {parent} is no folder that can be written to"
        raise UserError("run_dir", wanted, allowed)


def _requested_run_dir(config: RunConfig) -> Path:
    if config.run_dir is not None:
        return Path(config.run_dir).expanduser().absolute()
    now = datetime.now()
    return Path("outputs", f"{now:%Y-%m-%d}", f"{now:%H-%M-%S}_{config.name}_{config.seed}")


def _create_run_dir(config: RunConfig) -> Path:
    wanted = _requested_run_dir(config)
    try:
        return next(path for path in iter_unique_paths(wanted) if _claim_empty_dir(path))
    except OSError as error:
        raise UserError("run_dir", wanted, f"cannot be made: {error.strerror}") from error


def _claim_empty_dir(path: Path) -> bool:
    """Make a folder, or take one that is there and empty, as Hydra leaves that of `hydra.run.dir`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            return False
        (path / "resume").mkdir()  # of two runs that find it empty one gets it
    except FileExistsError:
        return False
    return True
