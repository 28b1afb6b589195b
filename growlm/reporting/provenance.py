"""Record where a run's numbers come from: when, by which command, with which code, on which machine."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import growlm
from growlm.reporting.run_history import write_json
from growlm.runtime.errors import UserError
from growlm.storage.input_files import lexists, read_json

PROVENANCE_FILE = "provenance.json"
PACKAGES = ("torch", "lightning", "transformers")
MODULE, CONSOLE_SCRIPT = "growlm.train", "growlm"


def record_session(run_dir: Path, processor: str, num_processes: int) -> None:
    """Add this process to the sessions in the run's `provenance.json`: one for its start and one for each resume.

    Args:
        run_dir: Folder of the run.
        processor: Short description of the GPU or CPU.
        num_processes: Processes that train together.

    Raises:
        DiskError: If the file cannot be written.
    """
    path = run_dir / PROVENANCE_FILE
    sessions: list[dict[str, Any]] = []
    if lexists(path):
        with suppress(UserError):  # a damaged record is no reason to stop a run
            sessions = read_json(path, "resume", run_dir, list[dict[str, Any]])
    write_json(path, [*sessions, describe_session(processor, num_processes)])


def describe_session(processor: str, num_processes: int) -> dict[str, Any]:
    """Return what is known of this process; values that cannot be found out are None."""
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": format_command(sys.orig_argv),
        "folder": str(Path.cwd()),
        "git_commit": find_git_commit(Path(growlm.__file__).parent),
        "host": platform.node(),
        "system": platform.platform(),
        "processor": processor,
        "processes": num_processes,
        "versions": {
            "growlm": growlm.__version__,
            "python": platform.python_version(),
            **{name: _find_version(name) for name in PACKAGES},
        },
    }


def format_command(arguments: list[str]) -> str | None:
    """Return the command line that a user would type, quoted for a shell; None if it is none of growlm's.

    Args:
        arguments: Arguments of the Python process, as in `sys.orig_argv`.
    """
    for index, argument in enumerate(arguments):
        if argument == MODULE and arguments[index - 1] == "-m":
            return shlex.join(["python", "-m", *arguments[index:]])
        if (
            index
            and Path(argument).name == CONSOLE_SCRIPT
            and arguments[index + 1 :][:1] == ["train"]
        ):
            return shlex.join([CONSOLE_SCRIPT, *arguments[index + 1 :]])
    return None


def find_git_commit(folder: Path) -> str | None:
    """Return the git commit that a folder is checked out from, with `-dirty` if files differ; None without git."""
    command = [
        "git",
        "-C",
        str(folder),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip() or None
    return None


def _find_version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None
