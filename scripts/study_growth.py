"""Does growth pay? Trains every arm of the study, keeps a line for each run, and makes the tables and plots.

    python scripts/study_growth.py                          two to three hours on two cores; again goes on
    python scripts/study_growth.py --only "width x2"        one axis
    python scripts/study_growth.py --tables                 of what has been trained so far
    python scripts/study_growth.py --again "width x2/grown" runs one of its runs once more, and compares
    python scripts/study_growth.py --scale 0.01 --out /tmp/try --work /tmp/try/work    everything, in minutes
    python scripts/study_growth.py --out DIR data=text data.path=FILE                  on other data

What follows the options are overrides of growlm.train, for every arm. What is done and how: docs/growth_study.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from re import fullmatch

from growth_study.agenda import losses_of, next_runs
from growth_study.arms import AXES, GRID, SEEDS, Axis
from growth_study.findings import Findings
from growth_study.record_file import Record, add_record, read_records
from growth_study.runs import Run, Study, key_of
from growth_study.tables import all_tables, fill_page, room
from growth_study.workers import Workers
from rich.console import Console
from rich.markdown import Markdown

from growlm.runtime.errors import RunError, UserError
from growlm.runtime.exit_codes import run_and_get_exit_code
from growlm.runtime.optional_packages import require_package
from growlm.storage.atomic_files import atomic_write_text
from growlm.storage.locks import LockedError, acquire_lock

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "growth_pays"
RECORDS = "runs.jsonl"
SETTLED = (
    "baseline",
    "data.cache",
    "resume",
    "reuse.folder",
    "run_dir",
    "schedule.decay_fraction",
    "seed",
)
"""Keys that every run of the study has from the study."""


def main() -> int:
    """Train what is missing, then write tables and plots."""
    arguments = _arguments()
    require_package("matplotlib", "'growlm[docs]'")  # rather now than when all is trained
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
        raise UserError("--out", out, f"{error.owner} is at it") from error
    with lock:
        with console.status("checking the runs that there are"):
            records = _of_this_study(read_records(out / RECORDS), study, out)
        if arguments.again:
            _again(arguments.again, study, records, console)
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
    """Carry out all runs that are missing.

    Raises:
        UserError: If the overrides cannot be; nothing has begun.
        RunError: If some of them failed; all others have been carried out.
    """
    for axis in axes:
        Run(axis.arms[0], SEEDS[0], GRID[0], GRID[0], 1.0).config(study)
    failed: list[Run] = []
    with Workers(jobs, study) as workers, console.status("beginning") as status:
        while True:
            while workers.has_room:
                todo = next_runs(axes, losses_of(records), [*failed, *workers.running])
                if not todo:
                    break
                workers.begin(todo[0])
            if not workers.running:
                break
            status.update(f"training: {'; '.join(run.title for run in workers.training)}")
            for run, record in workers.next_done():
                if isinstance(record, BaseException):
                    failed.append(run)
                    console.print(f"failed: {run.title}: {record}", markup=False, soft_wrap=True)
                    continue
                add_record(path, record)
                records.append(record)
                _tell(record, run, len(records), console)
    if failed:
        raise RunError(f"{len(failed)} runs failed; what they said is below {study.work / 'runs'}")


def _show(findings: Findings, out: Path, page: Path | None, console: Console) -> None:
    """Write the tables into their page, or beside the records, and draw the plots."""
    from growth_study.plots import draw_all  # takes a second, in every process that trains

    tables = all_tables(findings)
    if page is None:
        page = out / "tables.md"
        atomic_write_text(page, "".join(f"## {name}\n\n{room(name)}\n\n" for name in tables))
    fill_page(page, tables)
    for name in ("headline", "savings"):
        console.print(Markdown(tables[name]))
    files = [page, *draw_all(findings, out)]
    console.print(f"wrote {', '.join(str(file) for file in files)}", markup=False, soft_wrap=True)


def _tell(record: Record, run: Run, number: int, console: Console) -> None:
    loss = "diverged" if record["loss"] is None else f"{record['loss']:.4f}"
    console.print(f"{number:4d}  {loss}  {run.title}", highlight=False, soft_wrap=True)


def _again(name: str, study: Study, records: Sequence[Record], console: Console) -> None:
    """Run a finished run once more, with nothing kept from before.

    Raises:
        UserError: If no such run has finished.
        RunError: If its loss is another.
    """
    findings = Findings(records)
    arms = [arm for axis in AXES for arm in axis.arms]
    finished = {arm.key: runs for arm in arms if (runs := findings.of_arm(arm))}
    if name not in finished:
        raise UserError("--again", name, f"must be one that has finished: {', '.join(finished)}")
    before = finished[name][-1]
    run = Run.of(before)
    assert run is not None
    with (
        tempfile.TemporaryDirectory() as folder,
        Workers(1, replace(study, states=Path(folder))) as workers,
        console.status(f"training: {run.title}"),
    ):
        workers.begin([run])
        ((_, record),) = workers.next_done()
    if isinstance(record, BaseException):
        raise record
    is_same = record["loss"] == before["loss"]
    verdict = "the same to the last bit" if is_same else "DIFFERENT"
    found = f"{before['loss']!r}, again {record['loss']!r}: {verdict}"
    console.print(f"{run.title}: {found}", highlight=False, soft_wrap=True)
    if not is_same:
        raise RunError(f"code {before['code']} gave the first, {record['code']} the second")


def _of_this_study(records: Sequence[Record], study: Study, path: Path) -> list[Record]:
    """The records, all of runs that this study would make as they were made.

    Raises:
        UserError: If some were not.
    """
    for record in records:
        if (tuple(record["overrides"]), record["scale"]) != (study.overrides, study.scale):
            before = " ".join([*record["overrides"], f"--scale {record['scale']:g}"])
            raise UserError("--out", path, f"has runs of another study: {before}")
        run = Run.of(record)
        if run is None or key_of(run.config(study), study) != record["key"]:
            what = f"its run {record['key']} ({record['arm']}) is not what this code and conf/ make"
            raise UserError("--out", path, f"{what}; move it away, or take out its line")
    return list(records)


def _check_overrides(overrides: Sequence[str]) -> None:
    """Refuse what the study sets itself.

    Raises:
        UserError: Naming the first such key.
    """
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key in SETTLED or fullmatch(r"phases\.\w+\.lr", key):
            raise UserError(key, value, "is the study's own to set, for every run")


def _axes(names: Sequence[str] | None) -> Sequence[Axis]:
    unknown = set(names or ()) - {axis.name for axis in AXES}
    if unknown:
        known = ", ".join(axis.name for axis in AXES)
        raise UserError("--only", min(unknown), f"must be of: {known}")
    return [axis for axis in AXES if names is None or axis.name in names]


def _arguments() -> argparse.Namespace:
    summary, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", metavar="AXIS", help="this axis; may be repeated"
    )
    parser.add_argument("--tables", action="store_true", help="train nothing")
    parser.add_argument("--again", metavar="ARM", help="one of its runs once more, and compare")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="for runs.jsonl, tables and plots"
    )
    parser.add_argument("--page", type=Path, help="with places for the tables; else OUT/tables.md")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "outputs" / "study", help="for the runs"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes of one thread")
    parser.add_argument("--scale", type=float, default=1.0, help="of all lengths")
    parser.add_argument("overrides", nargs="*", help="of growlm.train, for every arm")
    arguments = parser.parse_args()
    cores = os.cpu_count() or 1
    if not 1 <= arguments.jobs <= cores:
        raise UserError("--jobs", arguments.jobs, f"must be 1 to {cores}, a core each")
    if not arguments.scale > 0:
        raise UserError("--scale", arguments.scale, "must be above 0")
    return arguments


def _end(*_: object) -> None:
    raise SystemExit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(run_and_get_exit_code(main))
