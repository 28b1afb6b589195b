"""Starting a script of tests as the processes of one run, as torchrun would."""

import os
import socket
import subprocess
import sys
from pathlib import Path

FOLDERS = ("tests/model", "tests/growth", "tests/training", "tests/checkpoint")


def environments(size):
    """What torchrun sets for each of so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[2]
    paths = [str(root), *(str(root / folder) for folder in FOLDERS)]
    for rank in range(size):
        yield os.environ | {
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(paths),
        }


def start(size, *command, **options):
    """Start `python *command` so many times; the processes."""
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            **options,
        )
        for environment in environments(size)
    ]


def ended(processes, seconds=120):
    """Wait for processes; exit code, stdout and stderr of each."""
    try:
        told = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *text) for process, text in zip(processes, told, strict=True)]


def run(size, *command, **options):
    """`start` and `ended`; all must have gone well."""
    outcome = ended(start(size, *command, **options))
    for code, _, errors in outcome:
        assert code == 0, errors
    return outcome
