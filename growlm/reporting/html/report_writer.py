"""Read the folders of runs and sweeps, and write report.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from growlm.reporting.html.comparison_page import build_comparison_page
from growlm.reporting.html.page import render_page
from growlm.reporting.html.run_page import build_run_page
from growlm.reporting.html.sweep_parameters import find_sweep_parameters
from growlm.reporting.reading.run_files import Run, read_run
from growlm.reporting.reading.sweep_runs import Sweep, is_sweep_folder, read_sweep
from growlm.runtime.errors import UserError
from growlm.storage.atomic_files import atomic_write_text


@dataclass
class Report:
    """Runs that a report shows."""

    runs: list[Run]
    parameter_keys: list[str]
    """Keys of the settings that distinguish the runs, in order."""
    sweep: Sweep | None
    """Sweep whose jobs the runs are; None for runs that are not a sweep."""

    @property
    def is_one_run(self) -> bool:
        """Whether the report shows a single run that is not part of a sweep."""
        return self.sweep is None and len(self.runs) == 1


def write_report(run_dirs: Sequence[Path], out: Path, title: str | None = None) -> None:
    """Write the report of one run, of a sweep, or of several runs side by side.

    Args:
        run_dirs: Folders of runs; a sweep's folder stands for all its jobs. Runs may be unfinished.
        out: HTML file to write; it is written atomically.
        title: Title of the page; None for a run's plan and result, or the name of the sweep.

    Raises:
        UserError: If a folder is neither a run nor a sweep folder, or its files were not written by growlm.
        DiskError: If the file cannot be written.
    """
    parent = out.absolute().parent
    if is_sweep_folder(parent) and all(folder.absolute().parent == parent for folder in run_dirs):
        run_dirs = [parent]  # sweep.json knows more about the jobs than their own folders
    write_page(read_report(run_dirs), out, title)


def read_report(run_dirs: Sequence[Path]) -> Report:
    """Read the runs that the report shows.

    Args:
        run_dirs: Folders of runs and sweeps.

    Raises:
        UserError: If a folder is neither a run nor a sweep folder, or its files were not written by growlm.
    """
    if len(run_dirs) == 1 and is_sweep_folder(run_dirs[0]):
        sweep = read_sweep(run_dirs[0])
        return Report(sweep.runs, sweep.parameter_keys, sweep)
    runs: list[Run] = []
    for folder in run_dirs:
        found = read_sweep(folder).runs if is_sweep_folder(folder) else [read_run(folder)]
        for run in found:
            run.sweep_parameters = {}
        known = {run.folder.resolve() for run in runs}
        runs += [run for run in found if run.config and run.folder.resolve() not in known]
    if not runs:
        raise UserError("argument", run_dirs[0], "no run has started there")
    _disambiguate_names(runs)
    return Report(runs, find_sweep_parameters(runs) if len(runs) > 1 else [], None)


def write_page(report: Report, out: Path, title: str | None = None) -> None:
    """Write the HTML page of a report.

    Args:
        report: Report that `read_report` returned.
        out: HTML file to write.
        title: Title of the page; None for a run's plan and result, or the name of the sweep.
    """
    if report.is_one_run:
        (run,) = report.runs
        data = build_run_page(run, title)
    else:
        name = report.sweep.name if report.sweep else "comparison"
        data = build_comparison_page(
            report.runs, report.parameter_keys, title or name, out.absolute().parent, report.sweep
        )
    atomic_write_text(out, render_page(data))


def _disambiguate_names(runs: Sequence[Run]) -> None:
    """Prefix runs of the same name with as much of their path as makes the names unique."""
    for depth in range(2, 6):
        names = [run.name for run in runs]
        for run in runs:
            if names.count(run.name) > 1:
                run.name = "/".join(run.folder.absolute().parts[-depth:])
