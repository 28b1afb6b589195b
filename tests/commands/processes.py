"""Commands and programs in processes of their own, forked from one that has imported what they need.

Importing torch and Lightning takes longer than most of what the tests ask of a command. What an import reads from
the environment is that of the first test; `tests/cli/test_growlm_program.py` starts processes as a user does.
"""

import multiprocessing
import os
import runpy
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.machines.imitation import imitate_machine
from tests.planner.stand_in_speed import use_stand_in_speed

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["growlm.training", "growlm.train", "growlm.grow", "growlm.convert"])
_STREAMS = ("stdin", "stdout", "stderr")


@dataclass(frozen=True)
class Finished:
    returncode: int
    stdout: str
    stderr: str


class CommandProcess:
    """`python -m module arguments`, or `python program.py arguments`, running."""

    def __init__(self, module, arguments, folder, streams, environment=None):
        self.streams = Path(streams)
        self._paths = [self.streams / name for name in _STREAMS]
        for path in self._paths:
            path.touch()
        arguments = [str(argument) for argument in arguments]
        self._process = _FORKS.Process(
            target=_run,
            args=(
                str(module),
                arguments,
                str(folder),
                environment or dict(os.environ),
                self._paths,
            ),
        )
        self._process.start()
        self.pid = self._process.pid

    def send_signal(self, number):
        os.kill(self.pid, number)

    @property
    def printed(self):
        """What it has printed so far."""
        return self._paths[1].read_text()

    @property
    def returncode(self):
        """The exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def kill(self):
        """Kill it if it still runs."""
        self._process.kill()

    def poll(self):
        """The exit code; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout=300):
        """Its exit code and what it printed."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"still running after {timeout} seconds")
        _, stdout, stderr = (path.read_text() for path in self._paths)
        return Finished(self._process.exitcode, stdout, stderr)


def _run(module, arguments, folder, environment, paths):
    # A test runner in the background may have SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    imitate_machine()
    use_stand_in_speed()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(paths):
        os.dup2(os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND), number)
    if folders := environment.get("PYTHONPATH"):
        sys.path[:0] = folders.split(os.pathsep)
    sys.argv = [module, *arguments]
    if module.endswith(".py"):
        sys.path.insert(0, str(Path(module).parent))  # as `python program.py` does
        runpy.run_path(module, run_name="__main__")
        return
    sys.path.insert(0, "")  # as `python -m` does
    sys.modules.pop(module, None)  # or runpy would warn that it runs twice
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def run_command(module, *arguments, folder, streams):
    """Run `python -m module arguments` in a folder, and keep its streams in another."""
    return CommandProcess(module, arguments, folder, streams).wait()
