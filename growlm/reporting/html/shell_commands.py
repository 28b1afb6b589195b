"""Build the shell commands that resume or repeat a run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from growlm.reporting.reading.override_text import format_as_typed
from growlm.reporting.reading.run_files import Run

ShellCommand = dict[str, str]


def build_run_commands(run: Run) -> list[ShellCommand]:
    """Return the commands of a run, each with `title`, `command` and `note`."""
    folder = str(run.folder.absolute())
    commands = []
    if run.can_resume:
        commands.append(
            {
                "title": "Resume",
                "command": format_train_command(f"resume={folder}"),
                "note": "from the newest state in the run's folder, bit-identical",
            }
        )
    commands.append(
        {
            "title": "Reproduce",
            # The saved config replaces the plan and all defaults; run_dir=null gives the run a new folder.
            "command": format_train_command(
                "-cd", folder, "+experiment@_global_=../config", "~phase_plan", "run_dir=null"
            ),
            "note": "trains by this run's config.yaml again, in a new folder below outputs/. Settings and groups "
            "behind it change it: seed=1, optimizer=muon",
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
                "title": "The same from the shipped settings",
                "command": format_train_command(*map(format_as_typed, run.overrides)),
                "note": "the overrides of this job of the sweep",
            }
        )
    return commands


def build_sweep_command(overrides: Sequence[str]) -> ShellCommand:
    """Return the command that repeats a sweep."""
    return {
        "title": "Sweep",
        "command": format_train_command("-m", *map(format_as_typed, overrides)),
        "note": "runs all jobs again",
    }


def format_train_command(*arguments: str) -> str:
    """Return a `growlm.train` command line, quoted for a shell."""
    return shlex.join(["python", "-m", "growlm.train", *arguments])
