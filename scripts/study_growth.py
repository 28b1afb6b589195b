"""Train every arm of the growth study, record each finished run, and make the tables and plots.

    python scripts/study_growth.py                          two to three hours on two cores; run it again to resume
    python scripts/study_growth.py --only "width x2"        one axis
    python scripts/study_growth.py --tables                 tables and plots of the finished runs; trains nothing
    python scripts/study_growth.py --again "width x2/grown" repeats a finished run and compares the losses
    python scripts/study_growth.py --scale 0.01 --out /tmp/try --work /tmp/try/work    everything, in minutes
    python scripts/study_growth.py --out DIR data=text data.path=FILE                  on other data

Arguments after the options are overrides of growlm.train for every arm. The method is described in
docs/growth_study.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from re import fullmatch

from growth_study.agenda import collect_losses, next_runs
from growth_study.arms import AXES, RATE_GRID, SEEDS, Axis
from growth_study.findings import Findings
from growth_study.record_file import Record, add_record, read_records
from growth_study.runs import Run, Study, make_run_key
from growth_study.tables import all_tables, fill_page, make_placeholder
from growth_study.workers import Workers
from rich.console import Console
from rich.markdown import Markdown

from growlm.runtime.errors import RunError, UserError
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.runtime.optional_packages import require_package
from growlm.storage.atomic_files import atomic_write_text
from growlm.storage.locks import LockedError, acquire_lock

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "growth_pays"
RECORDS = "runs.jsonl"
STUDY_KEYS = (
    "baseline",
    "data.cache",
    "resume",
    "reuse.folder",
    "run_dir",
    "schedule.decay_fraction",
    "seed",
)
"""Settings that the study sets for every run."""


def main() -> int:
    """Train the missing runs, then write tables and plots."""
    arguments = _arguments()
    require_package("matplotlib", "'growlm[docs]'")  # fails now rather than after training
    axes = _axes(arguments.only)
    out = arguments.out
    _check_overrides(arguments.overrides)
    work = arguments.work.absolute()
    study = Study(tuple(arguments.overrides), arguments.scale, work, work / "phases")
    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = acquire_lock(out / ".lock")
    except LockedError as error:
        raise UserError("--out", out, f"another process is using it ({error.owner})") from error
    with lock:
        with console.status("checking the recorded runs"):
            records = _check_records(read_records(out / RECORDS), study, out)
        if arguments.again:
            _repeat_run(arguments.again, study, records, console)
            return 0
        if not arguments.tables:
            _train(axes, study, out / RECORDS, records, arguments.jobs, console)
        _show(Findings(records), out, arguments.page, console)
    return 0


def _train(
    axes: Sequence[Axis],
    study: Study,
    path: Path,
    records: list[Record],
    jobs: int,
    console: Console,
) -> None:
    """Train all runs that are missing.

    Raises:
        UserError: If the overrides are invalid; nothing has started.
        RunError: If some runs failed; all others have been trained.
    """
    for axis in axes:
        Run(axis.arms[0], SEEDS[0], RATE_GRID[0], RATE_GRID[0], 1.0).config(study)
    failed: list[Run] = []
    with Workers(jobs, study) as workers, console.status("starting") as status:
        while True:
            while workers.has_room:
                todo = next_runs(axes, collect_losses(records), [*failed, *workers.running])
                if not todo:
                    break
                workers.start(todo[0])
            if not workers.running:
                break
            status.update(f"training: {'; '.join(run.title for run in workers.training)}")
            for run, record in workers.wait_for_runs():
                if isinstance(record, BaseException):
                    failed.append(run)
                    console.print(f"failed: {run.title}: {record}", markup=False, soft_wrap=True)
                    continue
                add_record(path, record)
                records.append(record)
                _print_record(record, run, len(records), console)
    if failed:
        raise RunError(f"{len(failed)} runs failed; their logs are in {study.work / 'runs'}")


def _show(findings: Findings, out: Path, page: Path | None, console: Console) -> None:
    """Write the tables into the page, or next to the records, and draw the plots."""
    # Imported here because it takes a second, also in every worker process.
    from growth_study.plots import draw_all

    tables = all_tables(findings)
    if page is None:
        page = out / "tables.md"
        atomic_write_text(
            page, "".join(f"## {name}\n\n{make_placeholder(name)}\n\n" for name in tables)
        )
    fill_page(page, tables)
    for name in ("headline", "savings"):
        console.print(Markdown(tables[name]))
    files = [page, *draw_all(findings, out)]
    console.print(f"wrote {', '.join(str(file) for file in files)}", markup=False, soft_wrap=True)


def _print_record(record: Record, run: Run, number: int, console: Console) -> None:
    loss = "diverged" if record["loss"] is None else f"{record['loss']:.4f}"
    console.print(f"{number:4d}  {loss}  {run.title}", highlight=False, soft_wrap=True)


def _repeat_run(name: str, study: Study, records: Sequence[Record], console: Console) -> None:
    """Repeat a finished run from scratch and compare the losses.

    Raises:
        UserError: If no such run has finished.
        RunError: If the losses differ.
    """
    findings = Findings(records)
    arms = [arm for axis in AXES for arm in axis.arms]
    finished = {arm.key: runs for arm in arms if (runs := findings.of_arm(arm))}
    if name not in finished:
        raise UserError(
            "--again", name, f"must be an arm with a finished run: {', '.join(finished)}"
        )
    before = finished[name][-1]
    run = Run.from_record(before)
    assert run is not None
    with (
        tempfile.TemporaryDirectory() as folder,
        Workers(1, replace(study, states=Path(folder))) as workers,
        console.status(f"training: {run.title}"),
    ):
        workers.start([run])
        ((_, record),) = workers.wait_for_runs()
    if isinstance(record, BaseException):
        raise record
    is_same = record["loss"] == before["loss"]
    verdict = "the same to the last bit" if is_same else "DIFFERENT"
    found = f"{before['loss']!r}, again {record['loss']!r}: {verdict}"
    console.print(f"{run.title}: {found}", highlight=False, soft_wrap=True)
    if not is_same:
        raise RunError(
            f"the losses differ: first with code {before['code']}, again with {record['code']}"
        )


def _check_records(records: Sequence[Record], study: Study, path: Path) -> list[Record]:
    """Check that this study would make the same runs, and return their records.

    Raises:
        UserError: If a record belongs to another study, or to other code or settings.
    """
    for record in records:
        if (tuple(record["overrides"]), record["scale"]) != (study.overrides, study.scale):
            before = " ".join([*record["overrides"], f"--scale {record['scale']:g}"])
            raise UserError("--out", path, f"has runs of another study: {before}")
        run = Run.from_record(record)
        if run is None or make_run_key(run.config(study), study) != record["key"]:
            what = f"its run {record['key']} ({record['arm']}) does not match the present code and conf/"
            raise UserError(
                "--out", path, f"{what}; move the folder away, or delete the run's line"
            )
    return list(records)


def _check_overrides(overrides: Sequence[str]) -> None:
    """Reject overrides of settings that the study sets itself.

    Raises:
        UserError: If there is one; it names the first.
    """
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key in STUDY_KEYS or fullmatch(r"phases\.\w+\.lr", key):
            raise UserError(key, value, "is set by the study and cannot be overridden")


def _axes(names: Sequence[str] | None) -> Sequence[Axis]:
    unknown = set(names or ()) - {axis.name for axis in AXES}
    if unknown:
        known = ", ".join(axis.name for axis in AXES)
        raise UserError("--only", min(unknown), f"must be one of {known}")
    return [axis for axis in AXES if names is None or axis.name in names]


def _arguments() -> argparse.Namespace:
    summary, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", metavar="AXIS", help="study only this axis; may be repeated"
    )
    parser.add_argument(
        "--tables", action="store_true", help="write tables and plots; train nothing"
    )
    parser.add_argument("--again", metavar="ARM", help="repeat a finished run of ARM and compare")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder for runs.jsonl, tables and plots"
    )
    parser.add_argument(
        "--page", type=Path, help="page with markers for the tables (default: OUT/tables.md)"
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / "outputs" / "study", help="folder for the runs"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="number of processes, one thread each"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor of all lengths")
    parser.add_argument("overrides", nargs="*", help="overrides of growlm.train for every arm")
    arguments = parser.parse_args()
    cores = os.cpu_count() or 1
    if not 1 <= arguments.jobs <= cores:
        raise UserError(
            "--jobs", arguments.jobs, f"must be from 1 to {cores}: each process needs a core"
        )
    if not arguments.scale > 0:
        raise UserError("--scale", arguments.scale, "must be above 0")
    return arguments


def _exit_on_sigterm(*_: object) -> None:
    raise SystemExit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    run_main_and_exit(main)
