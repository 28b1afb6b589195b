"""A tiny plan some of whose processes kill themselves: `killed_on_devices.py STEP RANKS RUN_DIR SETTING ...`.

RANKS as `0,1`; STEP counts from the beginning of the run.
"""

import os
import signal
import sys
from pathlib import Path

from growlm.runtime.exit_codes import exit_process, run_and_get_exit_code
from growlm.training import run_plan
from tests.machines.imitation import imitate_machine
from tests.training.stopping import SignalAt
from tests.training.tiny_run import tiny_config


def main(step, ranks, run_dir, *settings):
    imitate_machine()
    is_killed = int(os.environ["RANK"]) in map(int, ranks.split(","))
    callbacks = [SignalAt(int(step), signal.SIGKILL)] if is_killed else []

    def body():
        run_plan(tiny_config(Path(run_dir), *settings), callbacks)
        return 0

    exit_process(run_and_get_exit_code(body))


if __name__ == "__main__":
    main(*sys.argv[1:])
