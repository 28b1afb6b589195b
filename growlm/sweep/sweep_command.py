"""`python -m growlm.train -m`: find or make the sweep's folder, let Hydra launch the jobs, tell how they ended."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import hydra

from growlm.cli.hydra_command import quote_free_text
from growlm.config.load import ROOT_CONFIG_NAME, get_config_folder
from growlm.reporting.console.plain_console import make_stdout_console
from growlm.reporting.console.run_tables import print_report
from growlm.reporting.html import read_report, write_page
from growlm.reporting.reading.sweep_record import FINISHED, SWEEP_FILE, WRONG, SweepRecord
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import print_error
from growlm.storage.input_files import lexists
from growlm.storage.locks import LockedError
from growlm.storage.unique_path import make_unique_folder
from growlm.storage.watched_folders import FolderRemovedError
from growlm.sweep.compose import compose_jobs
from growlm.sweep.job import BASIC_LAUNCHER, SweepFolderRemoved, run_sweep_job
from growlm.sweep.sweep_folder import LOCK_NAMES, SweepFolder
from growlm.sweep.sweep_folder import SWEEP_DIR_KEY as PLACE


def run_sweep(arguments: Sequence[str]) -> int:
    """Run the jobs of a sweep that are missing or failed.

    Args:
        arguments: Of the command, `-m` among them, free text quoted.

    Returns:
        The exit code: 130 or 143 after a signal, else 1 if any job failed, else 2 if any asked for something
        wrong, else 0.

    Raises:
        UserError: If something asked for is wrong; nothing was written.
        RemovedError: If the sweep's folder was removed while it ran.
        HydraException: And its like, if a job cannot be composed.
    """
    first, parsed, wanted = compose_jobs(arguments)
    place = Path(str(first.hydra.sweep.dir)).expanduser().absolute()
    is_named = any(o.key_or_group == PLACE for o in parsed)
    folder = (
        _open_named_sweep(place, wanted)
        if is_named
        else _find_unfinished_sweep(place.parents[1], wanted)
    )
    is_new = folder is None
    made: list[Path] = []
    if folder is None:
        folder, made = _make_sweep_folder(place, is_named)
    try:
        lock = folder.lock_sweep()
    except LockedError as error:
        allowed = f"another process runs this sweep ({error.owner})"
        raise UserError(PLACE, folder.path, allowed) from error
    with lock:
        if is_new:
            folder.write(wanted)
        jobs = folder.read().jobs
        left = [job for job in jobs if job.status != FINISHED]
        if not is_new:
            print(f"{folder.path}: {len(jobs) - len(left)} of {len(jobs)} jobs have finished")
        if left and first.hydra.launcher._target_ != BASIC_LAUNCHER:
            print(f"{len(left)} jobs; what each says is in {folder.path}/*.log", flush=True)
        for job in wanted.jobs:
            if job.status == WRONG:
                print_error(f"error: {job.message}")
        code = _launch_jobs(arguments, folder) if left or not jobs else 0
    if not any(path.is_dir() and path.name[0] != "." for path in folder.path.iterdir()):
        _remove_unstarted_sweep(folder, made)
        return code
    found = read_report([folder.path])
    page = folder.path / "report.html"
    write_page(found, page)
    console = make_stdout_console()
    console.print()
    print_report(console, found)
    console.print(f"Report {page}", markup=False, soft_wrap=True)
    if any(job.status != FINISHED for job in folder.read().jobs):
        console.print("To go on with what is left: the same command again")
    return code


def _launch_jobs(arguments: Sequence[str], folder: SweepFolder) -> int:
    """Let Hydra run all jobs; the exit code."""
    others = [a for a in arguments if a.partition("=")[0] != PLACE]
    sys.argv[1:] = [*others, quote_free_text(f"{PLACE}={folder.path}")]
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
    except FolderRemovedError:
        raise
    except Exception as error:  # a launcher's: one of its processes was killed, say
        print_error(f"the launcher failed: {type(error).__name__}: {error}")
        default = 1
    folder.mark_dead_jobs("interrupted" if default == 130 else "failed")
    codes = [job.code for job in folder.read().jobs if job.code]
    if default == 130:
        return max((code for code in codes if code > 128), default=130)
    return min(codes, default=default)


def _open_named_sweep(place: Path, wanted: SweepRecord) -> SweepFolder | None:
    """The sweep in the folder that the command names; None if there is none.

    Raises:
        UserError: If it is another one.
    """
    folder = SweepFolder(place)
    if not lexists(place / SWEEP_FILE):
        return None
    there = folder.read()
    if not there.matches(wanted):
        command = " ".join(there.command)
        allowed = f"holds another sweep ({command}, or other config files); use another folder"
        raise UserError(PLACE, place, allowed)
    return folder


def _find_unfinished_sweep(outputs: Path, wanted: SweepRecord) -> SweepFolder | None:
    """The newest sweep of the same command that no process works on, if jobs of it are left."""
    earlier = outputs.glob(f"*/*/{SWEEP_FILE}")
    for path in sorted(earlier, key=lambda p: p.stat().st_mtime, reverse=True):
        folder = SweepFolder(path.parent)
        try:
            there = folder.read()
            folder.lock_sweep().close()
        except (OSError, ValueError, LockedError):
            continue
        if there.matches(wanted):
            return folder if any(job.status != FINISHED for job in there.jobs) else None
    return None


def _make_sweep_folder(place: Path, may_exist: bool) -> tuple[SweepFolder, list[Path]]:
    """Make the folder, under a name with a suffix if it is taken and may not be.

    Returns:
        The folder, and those that were made for it, innermost first.
    """
    made = [folder for folder in place.parents if not folder.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if may_exist and place.is_dir():
            return SweepFolder(place), made
        path = make_unique_folder(place)
    except OSError as error:
        raise UserError(PLACE, place, f"cannot be made: {error.strerror}") from error
    return SweepFolder(path), [path, *made]


def _remove_unstarted_sweep(folder: SweepFolder, made: Sequence[Path]) -> None:
    """No job began: say why, and leave nothing."""
    jobs = folder.read().jobs
    logs = [folder.path / f"{job.folder}.log" for job in jobs]
    for job, log in zip(jobs, logs, strict=True):
        if log.exists() and job.message:  # else it was printed when it happened
            print_error(f"{job.folder}: error: {job.message}")
    ours = [folder.path / name for name in (SWEEP_FILE, *LOCK_NAMES, "multirun.yaml")]
    for file in (*ours, *logs, *folder.path.glob(".job-*.lock")):
        file.unlink(missing_ok=True)
    for path in made:
        try:
            path.rmdir()
        except OSError:  # not empty
            return
