"""Starting a script of tests as the processes of one run, as torchrun would."""

import os
import subprocess
import sys
from pathlib import Path

from torch.distributed import TCPStore

FOLDERS = ("tests/model", "tests/growth", "tests/training", "tests/checkpoint")


def environments(size, port):
    """What torchrun sets for each of so many processes, which meet at its own store."""
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
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(paths),
        }


class Processes:
    """`python *command`, started so many times.

    Args:
        size: How often.
        command: The script, or `-m` and the module, and the arguments.
        options: More for `subprocess.Popen`.
    """

    def __init__(self, size, *command, **options):
        # Here, so that no port has to be found free and stay so until a process has started.
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.processes = [
            subprocess.Popen(
                [sys.executable, *map(str, command)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
                **options,
            )
            for environment in environments(size, self.store.port)
        ]

    def ended(self, seconds=180):
        """Wait for them; exit code, stdout and stderr of each."""
        try:
            told = [process.communicate(timeout=seconds) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [(p.returncode, *text) for p, text in zip(self.processes, told, strict=True)]


def run(size, *command, **options):
    """Start processes, which must all end well; stdout and stderr of each."""
    outcome = Processes(size, *command, **options).ended()
    for code, _, errors in outcome:
        assert code == 0, errors
    return [text for _, *text in outcome]
