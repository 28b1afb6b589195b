"""Restart a command as several processes on this machine, with torch's elastic launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from growlm.runtime.signals import list_optional_stop_signals

SHUTDOWN_TIMEOUT_S = 1800
"""Seconds that the processes have to end after a signal."""


def launch_processes(module: str, arguments: Sequence[str], num_processes: int) -> int:
    """Run `python -m module arguments` as `num_processes` distributed processes and return the exit code.

    Like `torchrun --standalone --nproc-per-node`, but without its messages, and with the exit code of the process
    that failed first.

    Args:
        module: Module of the command.
        arguments: Command line arguments.
        num_processes: Number of processes.
    """
    # Importing it takes a second, and a single process does not need it.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for part in ("agent.server.api", "multiprocessing.api"):
        # The processes print their own errors.
        logging.getLogger(f"torch.distributed.elastic.{part}").setLevel(logging.CRITICAL)
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # After a signal they finish the step and write the resume state; torch would kill them after 30 seconds.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_TIMEOUT_S))
    passed_on = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, *list_optional_stop_signals()]
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        max_restarts=0,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=str(os.getpid()),
        monitor_interval=0.1,
        signals_to_handle=",".join(number.name for number in passed_on),
    )
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    return 0
