"""Create, open and lock run folders."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from omegaconf import OmegaConf

from growlm.checkpoint.resume_state import (
    RESUME_SETTING,
    ResumeState,
    list_state_folders,
    state_folder,
)
from growlm.checkpoint.run_record import (
    CONFIG_FILE,
    RUN_RECORD_FILE,
    SUMMARY_FILE,
    read_run_record,
)
from growlm.config.literal import escape_prompt_interpolations
from growlm.config.phase_plan import PlannedPhase
from growlm.config.schema import RunConfig
from growlm.distributed.process_group import DistributedContext
from growlm.runtime.errors import UserError
from growlm.storage.atomic_files import atomic_write_text
from growlm.storage.integrity import dump_checksummed_json
from growlm.storage.locks import LockedError, acquire_lock
from growlm.storage.unique_path import iter_unique_paths
from growlm.training.resume.state_schema import open_state

KEPT_NO_STATE = (
    "has finished and kept no state to train on from (checkpoint.keep_final_state). A new run can begin "
    "with its model and a new optimizer: model=pretrained model.path=RUN_DIR/checkpoints/NAME"
)
"""Why a run that has finished cannot be given more steps, and what to do instead."""


@dataclass(frozen=True)
class RunFingerprint:
    """Inputs of a run besides its config, which must be unchanged for an exact resume."""

    data: str
    """Checksum of all tokens."""
    accelerator: str
    precision: str
    weights: str | None = None
    """Checksum of the pretrained weights that the first phase starts from; None if there are none."""
    processor: str | None = field(default=None, compare=False)
    """Short description of the processor. A run can resume on another one, but not bit for bit."""
    newest_inode_change: int | None = field(default=None, compare=False)
    """See `RunData`. If it has become later, the run resumes with a warning."""
    evaluation: dict[str, str] | None = None
    """Checksum of each text that is named to evaluate on, by its key; None if there is none."""


@dataclass
class RunFolder:
    """A run's folder, locked by the process that opened it for as long as this object lives."""

    path: Path
    run_id: str
    fingerprint: RunFingerprint
    lock: BinaryIO | None
    """The lock file; None on every rank but 0."""

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self.lock is not None:
            self.lock.close()

    @property
    def resume_dir(self) -> Path:
        """The folder of the run's resume states."""
        return self.path / "resume"

    def state_folder(self, phase: PlannedPhase, step: int, is_finished: bool = False) -> Path:
        """Return the folder of the resume state after `step` steps of a phase, which may have ended there.

        A phase that ends early, or has no steps, may have another state of the same step.
        """
        is_shared = (is_finished and step < phase.num_steps) or not phase.num_steps
        return state_folder(
            self.resume_dir, phase.first_step + step, phase.index if is_shared else None
        )

    def load_newest_state(
        self, dist_context: DistributedContext | None = None
    ) -> tuple[ResumeState | None, list[UserError]]:
        """Return the newest intact state and the errors of newer, damaged ones, which are removed.

        Args:
            dist_context: Process group of a run with several processes, which will all read the state.

        Raises:
            UserError: If there are states, but none is intact.
        """
        damaged: list[UserError] = []
        folders = list_state_folders(self.resume_dir)
        for folder in reversed(folders):
            try:
                state = open_state(folder, dist_context)
            except UserError as error:
                damaged.append(error)
                continue
            for newer in folders[folders.index(folder) + 1 :]:
                shutil.rmtree(newer)
            return state, damaged
        if damaged:
            raise damaged[0]
        return None, []

    def remove_states(self, keep: int = 0) -> None:
        """Remove the resume states but the newest ones, once the run has finished."""
        folders = list_state_folders(self.resume_dir)
        for folder in folders[: len(folders) - keep]:
            shutil.rmtree(folder)


def create_run_folder(config: RunConfig, fingerprint: RunFingerprint) -> RunFolder:
    """Create the folder that the config names, or the default one, with a suffix if it exists and is not empty.

    Raises:
        UserError: If it cannot be created.
        DiskError: If it cannot be written to; nothing is left behind.
    """
    path = _create_run_dir(config)
    text = format_saved_config(config)
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


def format_saved_config(config: RunConfig) -> str:
    """Return the text of a run's `config.yaml`."""
    saved = escape_prompt_interpolations(replace(config, resume=None, trust=[]))
    return OmegaConf.to_yaml(OmegaConf.structured(saved))


def open_run_folder(path: Path, may_have_finished: bool = False) -> RunFolder:
    """Open and lock the folder of a run that has stopped, to resume it.

    Args:
        path: Folder of the run.
        may_have_finished: Whether the run may have finished, since it is to be extended.

    Raises:
        UserError: If there is none, its files are damaged, it has finished, or another process is using it.
    """
    record = read_run_record(path)
    if (path / SUMMARY_FILE).exists() and not may_have_finished:
        reason = (
            "has finished; there is nothing to resume. To train its last phase further, add "
            "phases.NAME.steps=+500"
        )
        if not list_state_folders(path / "resume"):
            reason = KEPT_NO_STATE
        raise UserError(RESUME_SETTING, path, reason)
    fingerprint = RunFingerprint(
        record["data"],
        record["accelerator"],
        record["precision"],
        record.get("weights"),
        record.get("processor"),
        record.get("newest_inode_change"),
        record.get("evaluation"),
    )
    folder = RunFolder(path, record["id"], fingerprint, lock_run(path))
    _remove_partial_files(path)
    return folder


def _remove_partial_files(path: Path) -> None:
    """Remove partial files and stale locks that a killed process left in a run's folder."""
    for pattern in (".*.partial", "resume/.*.partial", "checkpoints/.*.partial"):
        for partial in path.glob(pattern):
            if partial.is_dir() and not partial.is_symlink():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)
    for lock in (*path.glob("resume/.*.lock"), *path.glob("checkpoints/.*.lock")):
        lock.unlink(missing_ok=True)


def lock_run(path: Path) -> BinaryIO:
    """Lock a run until this process ends, however it ends.

    Raises:
        UserError: If another process holds the lock, or the folder cannot be written to.
    """
    try:
        return acquire_lock(path / "resume" / "lock")
    except LockedError as error:
        raise UserError(
            RESUME_SETTING, path, f"another process is using it ({error.owner})"
        ) from error
    except OSError as error:
        raise UserError(RESUME_SETTING, path, f"cannot be written to: {error.strerror}") from error


def check_run_dir_writable(config: RunConfig) -> None:
    """Check, before anything slow, that the run's folder can be created.

    Raises:
        UserError: If it cannot.
    """
    requested = _requested_run_dir(config).absolute()
    if config.run_dir is not None and not config.run_dir.strip():
        raise UserError("run_dir", config.run_dir, "is empty; name a folder, or leave it out")
    try:
        requested.exists()
    except OSError as error:  # for example a name that is too long
        raise UserError("run_dir", requested, f"cannot be created: {error.strerror}") from error
    here, resolved = Path.cwd(), requested.resolve()
    if resolved in here.parents or (resolved == here and any(here.iterdir())):
        reason = (
            "is the folder that the command runs in, or one above it, and not empty; name a folder in it, "
            "such as run_dir=runs/first"
        )
        raise UserError("run_dir", config.run_dir, reason)
    parent = next(path for path in (*requested.parents, Path("/")) if path.exists())
    if requested == parent or not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        reason = f"cannot be created: {parent} is not a writable folder"
        raise UserError("run_dir", requested, reason)


def describe_other_run_dir(config: RunConfig, path: Path) -> str | None:
    """Return a note if a new run's folder is not the one that was asked for; None if it is."""
    if config.run_dir is None or path == _requested_run_dir(config):
        return None
    return f"{_requested_run_dir(config)} exists and is not empty; the run's folder is {path}"


def _requested_run_dir(config: RunConfig) -> Path:
    if config.run_dir is not None:
        path = Path(config.run_dir).expanduser().absolute()
        return path if path.name != ".." else path.resolve()
    now = datetime.now()
    return Path("outputs", f"{now:%Y-%m-%d}", f"{now:%H-%M-%S}_{config.name}_{config.seed}")


def _create_run_dir(config: RunConfig) -> Path:
    requested = _requested_run_dir(config)
    try:
        return next(path for path in iter_unique_paths(requested) if _claim_empty_dir(path))
    except OSError as error:
        raise UserError("run_dir", requested, f"cannot be created: {error.strerror}") from error


def _claim_empty_dir(path: Path) -> bool:
    """Create a folder, or claim an existing empty one, as Hydra leaves at `hydra.run.dir`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            return False
        (path / "resume").mkdir()  # if two runs find it empty, only one gets it
    except FileExistsError:
        return False
    return True
