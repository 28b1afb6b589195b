"""Commands that go on with a run and that repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from growlm.reporting.reading.run_files import Run

ShellCommand = dict[str, str]


def build_run_commands(run: Run) -> list[ShellCommand]:
    """`title`, `command` and `note` of each."""
    folder = str(run.folder.absolute())
    found = []
    if run.can_resume:
        found.append(
            {
                "title": "Go on",
                "command": format_train_command(f"resume={folder}"),
                "note": "from the newest state in the run's folder, to the bit",
            }
        )
    found.append(
        {
            "title": "Reproduce",
            # The config replaces the plan and everything else; in a folder of its own, not beside the run.
            "command": format_train_command(
                "-cd", folder, "+experiment@_global_=../config", "~phase_plan", "run_dir=null"
            ),
            "note": "runs this run's config.yaml again, in a new folder below outputs/",
        }
    )
    if run.overrides:
        found.append(
            {
                "title": "The same from the shipped settings",
                "command": format_train_command(*run.overrides),
                "note": "the overrides of this job of the sweep",
            }
        )
    return found


def build_sweep_command(overrides: Sequence[str]) -> ShellCommand:
    """The one that began a sweep."""
    return {
        "title": "Sweep",
        "command": format_train_command("-m", *overrides),
        "note": "runs all jobs again",
    }


def format_train_command(*arguments: str) -> str:
    """A line for a shell."""
    return shlex.join(["python", "-m", "growlm.train", *arguments])
