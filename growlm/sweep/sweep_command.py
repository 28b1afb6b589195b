"""Run `growlm train -m`: find or create the sweep's folder, launch the jobs with Hydra, report the results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from growlm.cli.free_text import quote_free_text
from growlm.config.load import ROOT_CONFIG_NAME, get_config_folder, translate_hydra_error
from growlm.reporting.console.plain_console import make_stdout_console
from growlm.reporting.console.run_tables import print_report
from growlm.reporting.html import read_report, write_page
from growlm.reporting.reading.sweep_record import FINISHED, SWEEP_FILE, WRONG, SweepRecord
from growlm.runtime.errors import RunError, UserError
from growlm.runtime.exit_codes import print_error
from growlm.storage.input_files import lexists
from growlm.storage.locks import LockedError
from growlm.storage.unique_path import make_unique_folder
from growlm.sweep.compose import compose_jobs
from growlm.sweep.job import BASIC_LAUNCHER, SweepFolderRemoved, run_sweep_job
from growlm.sweep.sweep_folder import LOCK_NAMES, SWEEP_DIR_KEY, SweepFolder


def run_sweep(arguments: Sequence[str]) -> int:
    """Run the jobs of a sweep that have not finished.

    Args:
        arguments: Arguments of the command including `-m`, free text quoted.

    Returns:
        The exit code: 128 plus the number of a signal that stopped it, else 1 if any job failed, else 2 if any job
        had invalid settings, else 0.

    Raises:
        UserError: If a setting of the sweep is invalid; nothing was written.
        FolderRemovedError: If the sweep's folder was removed while it ran.
        HydraException: If a job cannot be composed; also other exceptions of Hydra and OmegaConf.
    """
    first, parsed, requested = compose_jobs(arguments)
    if not str(first.hydra.sweep.dir).strip():
        raise UserError(SWEEP_DIR_KEY, "", "is empty; name a folder, or leave it out")
    if len(requested.jobs) == 1:
        _explain_literal_commas(parsed)
    sweep_dir = Path(str(first.hydra.sweep.dir)).expanduser().absolute()
    is_named = any(o.key_or_group == SWEEP_DIR_KEY for o in parsed)
    folder = (
        _open_named_sweep(sweep_dir, requested)
        if is_named
        else _find_unfinished_sweep(sweep_dir.parents[1], requested)
    )
    is_new = folder is None
    created: list[Path] = []
    if folder is None:
        folder, created = _make_sweep_folder(sweep_dir, is_named)
    try:
        lock = folder.lock_sweep()
    except LockedError as error:
        reason = f"another process is running this sweep ({error.owner})"
        raise UserError(SWEEP_DIR_KEY, folder.path, reason) from error
    with lock:
        if is_new:
            folder.write(requested)
        jobs = folder.read().jobs
        remaining = [job for job in jobs if job.status != FINISHED]
        if not is_new:
            print(f"{folder.path}: {len(jobs) - len(remaining)} of {len(jobs)} jobs have finished")
        if remaining and first.hydra.launcher._target_ != BASIC_LAUNCHER:
            print(f"{len(remaining)} jobs to run; logs: {folder.path}/*.log", flush=True)
        for job in requested.jobs:
            if job.status == WRONG:
                print_error(f"error: {job.message}")
        try:
            code = _launch_jobs(arguments, folder) if remaining or not jobs else 0
        except UserError:
            if is_new and not _has_job_folders(folder):
                _remove_unstarted_sweep(folder, created)
            raise
    if not _has_job_folders(folder):
        _remove_unstarted_sweep(folder, created)
        return code
    report = read_report([folder.path])
    page = folder.path / "report.html"
    write_page(report, page)
    console = make_stdout_console()
    console.print()
    print_report(console, report)
    console.print(f"Report {page}", markup=False, soft_wrap=True)
    if any(job.status != FINISHED for job in folder.read().jobs):
        console.print("To run the remaining jobs, repeat the same command.")
    return code


def _explain_literal_commas(overrides: Sequence[Override]) -> None:
    """Print how to sweep over a text, for a sweep that has a single job and a text with commas."""
    for override in overrides:
        value = override.value()
        if not override.is_sweep_override() and isinstance(value, QuotedString | str):
            text = value if isinstance(value, str) else value.text
            if "," in text:
                key = override.key_or_group
                print_error(
                    f"warning: the commas in {key}={text} are part of the text; to sweep over it, write "
                    f"{key}=choice({text})"
                )


def _launch_jobs(arguments: Sequence[str], folder: SweepFolder) -> int:
    """Run all jobs with Hydra and return the exit code."""
    others = [a for a in arguments if a.partition("=")[0] != SWEEP_DIR_KEY]
    sys.argv[1:] = [*others, quote_free_text(f"{SWEEP_DIR_KEY}={folder.path}")]
    main = hydra.main(
        version_base="1.3", config_path=str(get_config_folder()), config_name=ROOT_CONFIG_NAME
    )
    default = 0
    try:
        main(run_sweep_job)()
    except KeyboardInterrupt:
        default = 130
    except SweepFolderRemoved as removed:
        raise removed.error from None
    except (UserError, RunError):  # growlm's own, which says what it is about
        with suppress(UserError, RunError, OSError):
            folder.mark_dead_jobs("failed")
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise translate_hydra_error(error) from error  # of a sweeper's settings
    except Exception as error:  # from a launcher, for example if a process was killed
        print_error(f"the launcher failed: {type(error).__name__}: {error}")
        default = 1
    folder.mark_dead_jobs("interrupted" if default == 130 else "failed")
    codes = [job.code for job in folder.read().jobs if job.code]
    if default == 130:
        return max((code for code in codes if code > 128), default=130)
    return min(codes, default=default)


def _open_named_sweep(sweep_dir: Path, requested: SweepRecord) -> SweepFolder | None:
    """Return the sweep in the folder that the command names; None if it holds no sweep.

    Raises:
        UserError: If the folder holds another sweep.
    """
    folder = SweepFolder(sweep_dir)
    if not lexists(sweep_dir / SWEEP_FILE):
        return None
    existing = folder.read()
    if not existing.matches(requested):
        command = " ".join(existing.command)
        reason = f"holds another sweep (its command: {command}), or its config files have changed"
        raise UserError(SWEEP_DIR_KEY, sweep_dir, f"{reason}; use another folder")
    return folder


def _find_unfinished_sweep(outputs: Path, requested: SweepRecord) -> SweepFolder | None:
    """Return the newest sweep with the same command that no process runs, if any of its jobs remain."""
    earlier = outputs.glob(f"*/*/{SWEEP_FILE}")
    for path in sorted(earlier, key=lambda p: p.stat().st_mtime, reverse=True):
        folder = SweepFolder(path.parent)
        try:
            found = folder.read()
            folder.lock_sweep().close()
        except (OSError, UserError, LockedError):
            continue
        if found.matches(requested):
            return folder if any(job.status != FINISHED for job in found.jobs) else None
    return None


def _make_sweep_folder(sweep_dir: Path, may_exist: bool) -> tuple[SweepFolder, list[Path]]:
    """Create the sweep's folder; add a suffix if the name is taken and `may_exist` is false.

    Returns:
        The sweep's folder, and all folders that were created, innermost first.
    """
    created: list[Path] = []
    try:
        created = [folder for folder in sweep_dir.parents if not folder.exists()]
        sweep_dir.parent.mkdir(parents=True, exist_ok=True)
        if may_exist and sweep_dir.is_dir():
            return SweepFolder(sweep_dir), created
        path = make_unique_folder(sweep_dir)
    except OSError as error:
        for parent in created:
            with suppress(OSError):
                parent.rmdir()
        raise UserError(SWEEP_DIR_KEY, sweep_dir, f"cannot be created: {error.strerror}") from error
    return SweepFolder(path), [path, *created]


def _has_job_folders(folder: SweepFolder) -> bool:
    return any(path.is_dir() and path.name[0] != "." for path in folder.path.iterdir())


def _remove_unstarted_sweep(folder: SweepFolder, created: Sequence[Path]) -> None:
    """Print why no job started, and remove everything that the sweep wrote."""
    jobs = folder.read().jobs
    logs = [folder.path / f"{job.folder}.log" for job in jobs]
    for job, log in zip(jobs, logs, strict=True):
        if log.exists() and job.message:  # without a log it has been printed already
            print_error(f"{job.folder}: error: {job.message}")
    sweep_files = [folder.path / name for name in (SWEEP_FILE, *LOCK_NAMES, "multirun.yaml")]
    for file in (*sweep_files, *logs, *folder.path.glob(".job-*.lock")):
        file.unlink(missing_ok=True)
    for path in created:
        try:
            path.rmdir()
        except OSError:  # not empty
            return
