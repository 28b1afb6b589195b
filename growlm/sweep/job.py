"""Run one job of a sweep: skip it if it has finished, resume it if it was interrupted, else start it."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from growlm.cli.hydra_command import run_command
from growlm.config.composing.composition import complete_phases
from growlm.config.load import to_run_config, to_valid_run_config, trace_interpolated_keys
from growlm.config.schema import RunConfig
from growlm.distributed.launch_environment import adopt_launcher_variables
from growlm.reporting.loggers.wandb_settings import NAME_LIMIT, shorten
from growlm.reporting.reading.sweep_record import FINISHED, INTERRUPTED, RUNNING, WRONG, Job
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import print_error
from growlm.runtime.output_streams import OutputStream, output_may_be_lost
from growlm.storage.atomic_files import open_for_append
from growlm.storage.locks import LockedError
from growlm.storage.watched_folders import FolderRemovedError
from growlm.sweep.sweep_folder import STATUS_BY_EXIT_CODE, SweepFolder

BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


def run_sweep_job(composed: DictConfig) -> None:
    """Run one job and record how it ended; called by Hydra's launcher, maybe in a separate process.

    Args:
        composed: Composed config of the job.

    Raises:
        KeyboardInterrupt: After a signal, if all jobs run in one process, to stop the whole sweep.
        SweepFolderRemoved: If the sweep's folder was removed, and all jobs run in one process.
        FolderRemovedError: If the sweep's folder was removed, and the job has its own process.
    """
    settings = HydraConfig.get()
    overrides = [*settings.overrides.hydra, *settings.overrides.task]
    complete_phases(composed, overrides, settings.job.config_name)
    is_sequential = settings.launcher._target_ == BASIC_LAUNCHER
    try:
        with output_may_be_lost():
            _run_locked_job(composed, settings, is_sequential)
    except FolderRemovedError as error:
        if is_sequential:
            raise SweepFolderRemoved(error) from error
        raise


class SweepFolderRemoved(BaseException):
    """The sweep's folder was removed; a `BaseException`, so that it ends the whole sweep."""

    def __init__(self, error: FolderRemovedError) -> None:
        self.error = error
        super().__init__(error)


def _run_locked_job(composed: DictConfig, settings: HydraConf, is_sequential: bool) -> None:
    folder = SweepFolder(Path(settings.sweep.dir))
    job = folder.get_or_add_job(settings.job.num, settings.overrides.task)
    try:
        lock = folder.lock_job(job.number)
    except LockedError as error:
        print(f"{job.folder}: skipped, {error.owner} is running it")
        return
    with lock:
        if (folder.path / job.folder / "summary.json").exists():
            folder.update_job(job.number, status=FINISHED, code=0, message=None)
            return
        if job.status == WRONG and _has_config_error(composed):
            return  # reported before the first job started
        folder.update_job(job.number, status=RUNNING)
        if is_sequential:
            shown = "".join(f"  {key.rpartition('.')[2]}={v}" for key, v in job.dials.items())
            print(f"\nJob {job.number + 1} of {len(folder.read().jobs)}{shown}\n", flush=True)
        log = None if is_sequential else folder.path / f"{job.folder}.log"
        status, code = _run_and_record(composed, folder, job, log)
    if not is_sequential:
        print(f"{job.folder}: {status}", flush=True)
    elif code > 128:
        raise KeyboardInterrupt


def _run_and_record(
    composed: DictConfig, folder: SweepFolder, job: Job, log: Path | None
) -> tuple[str, int]:
    """Run the job and record its status; return the status and the exit code."""
    messages: list[str] = []
    with _redirect_output(log):
        code = run_command(lambda: _run_plan(composed, folder, job), messages.append)
    job = folder.get_or_add_job(job.number, job.overrides)
    has_finished = (folder.path / job.folder / "summary.json").exists()
    status = FINISHED if has_finished else STATUS_BY_EXIT_CODE.get(code, INTERRUPTED)
    message = " ".join(messages) or None
    folder.update_job(job.number, status=status, code=code, message=message)
    return status, code


def _has_config_error(composed: DictConfig) -> bool:
    try:
        to_valid_run_config(composed)
    except UserError:
        return True
    return False


def _run_plan(composed: DictConfig, folder: SweepFolder, job: Job) -> int:
    config = _apply_sweep_settings(to_run_config(composed), folder, job)
    from growlm.training import Interrupted, run_plan  # Lightning takes seconds to import

    try:
        with trace_interpolated_keys(composed):
            result = run_plan(config)
    except Interrupted as interrupted:
        print_error(str(interrupted))
        return interrupted.code
    folder.update_job(job.number, folder=result.run_dir.name)
    return 0


def _apply_sweep_settings(config: RunConfig, folder: SweepFolder, job: Job) -> RunConfig:
    """Return the job's config with the settings that the sweep determines, such as `run_dir`.

    Raises:
        UserError: If the command sets `resume` or `run_dir`, or its launcher starts several processes per job.
    """
    if config.resume is not None:
        raise UserError(
            "resume", config.resume, "is for a single run; to resume a sweep, repeat its command"
        )
    if config.run_dir is not None:
        reason = "a sweep chooses the folders of its runs; set hydra.sweep.dir instead"
        raise UserError("run_dir", config.run_dir, reason)
    adopt_launcher_variables()
    if (started := os.environ.get("WORLD_SIZE", "1")) != "1":
        reason = "must be 1, since each job of a sweep is one process"
        raise UserError("hydra.launcher.tasks_per_node", started, reason)
    path = folder.path / job.folder
    has_begun = (path / "resume" / "run.json").is_file()
    if not has_begun:
        shutil.rmtree(path, ignore_errors=True)  # killed before it wrote a resume state
    shares_phases = config.reuse.phases == "sweep"
    return replace(
        config,
        run_dir=str(path),
        resume=str(path) if has_begun else None,
        logger=replace(
            config.logger,
            group=config.logger.group or _get_default_group(config, folder),
            tags=[*config.logger.tags, "sweep"],
        ),
        reuse=replace(config.reuse, phases="always") if shares_phases else config.reuse,
    )


def _get_default_group(config: RunConfig, folder: SweepFolder) -> str | None:
    """Return the sweep's name as the loggers' group; None where W&B has one from its environment variable."""
    if config.logger.name == "wandb" and os.environ.get("WANDB_RUN_GROUP"):
        return None
    return shorten(folder.path.name, NAME_LIMIT)


@contextmanager
def _redirect_output(path: Path | None) -> Iterator[None]:
    """Redirect output to a log file, since parallel jobs would mix their lines; None for no redirection."""
    if path is None:
        yield
        return
    file = io.TextIOWrapper(open_for_append(path), encoding="utf-8")
    log = OutputStream(file, is_optional=True)
    try:
        with redirect_stdout(log), redirect_stderr(log):
            yield
    finally:
        with suppress(OSError):  # a full disk
            file.close()
