"""Build the shell commands that resume or repeat a run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from growlm.reporting.reading.failed_growth import find_failed_growth
from growlm.reporting.reading.override_text import format_as_typed
from growlm.reporting.reading.run_files import Run

ShellCommand = dict[str, str]


def build_run_commands(run: Run) -> list[ShellCommand]:
    """Return the commands of a run, each with `title`, `command` and `note`."""
    folder = str(run.folder.absolute())
    commands = []
    failed = find_failed_growth(run)
    if failed is not None and failed.overrides:
        commands.append(
            {
                "title": "Run again so that the growth passes",
                "command": format_reproduce_command(run.folder, *failed.overrides),
                "note": "trains by this run's config.yaml with the changed setting, in a new folder below "
                "outputs/. A resume would fail in the same way",
            }
        )
    elif run.can_resume:
        commands.append(
            {
                "title": "Resume" if failed is None else "Resume, once the operator is corrected",
                "command": format_train_command(f"resume={folder}"),
                "note": "from the newest state in the run's folder, bit-identical",
            }
        )
    commands.append(
        {
            "title": "Reproduce",
            "command": format_reproduce_command(run.folder),
            "note": "trains by this run's config.yaml again, in a new folder below outputs/. Append settings or "
            "groups to change it, such as seed=1 or optimizer=muon"
            + ("" if failed is None else ". As it is, the same growth fails again"),
        }
    )
    typed = run.sessions[0].get("command") if run.sessions else None
    if typed:
        commands.append(
            {
                "title": "As typed",
                "command": str(typed),
                "note": f"in {run.sessions[0].get('folder') or 'the folder that it was started from'}",
            }
        )
    if run.overrides:
        commands.append(
            {
                "title": "The same from the config files",
                "command": format_train_command(
                    *run.config_options, *map(format_as_typed, run.overrides)
                ),
                "note": "the overrides of this job of the sweep",
            }
        )
    return commands


def format_reproduce_command(run_dir: Path, *overrides: str) -> str:
    """Return the command that trains by a run's saved config again.

    Args:
        run_dir: Folder of the run.
        overrides: Settings to change.
    """
    # The saved config replaces the plan and all defaults; run_dir=null gives the run a new folder.
    saved = ("-cd", str(run_dir.absolute()), "+experiment@_global_=../config", "~phase_plan")
    return format_train_command(*saved, "run_dir=null", *overrides)


def build_sweep_command(
    overrides: Sequence[str], config_options: Sequence[str] = ()
) -> ShellCommand:
    """Return the command that repeats a sweep.

    Args:
        overrides: Overrides that the sweep was started with.
        config_options: Options that name config files of the user's own.
    """
    return {
        "title": "Sweep",
        "command": format_train_command("-m", *config_options, *map(format_as_typed, overrides)),
        "note": "runs all jobs again",
    }


def format_train_command(*arguments: str) -> str:
    """Return a `growlm.train` command line, quoted for a shell."""
    return shlex.join(["python", "-m", "growlm.train", *arguments])
