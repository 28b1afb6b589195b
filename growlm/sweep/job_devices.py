"""Reject sweep jobs on several devices and show the `torchrun` command to run them separately."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from omegaconf import DictConfig

from growlm.reporting.reading.override_text import format_as_typed
from growlm.runtime.errors import UserError

RENDEZVOUS_ARGUMENTS = "--rdzv-backend c10d --rdzv-endpoint FIRST_NODE:29500"
"""Additional `torchrun` arguments for several nodes."""


def reject_multi_device_job(
    overrides: Sequence[str], config: DictConfig, config_dir: str | None
) -> None:
    """Reject a job on several devices: under `torchrun` every process would run the whole sweep.

    Args:
        overrides: Overrides of the job, without those for Hydra.
        config: Composed config of the job.
        config_dir: Config folder given by the user; None if there is none.

    Raises:
        UserError: With the command that runs this job on its own.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    wanted = int(config.trainer.devices or 1)
    devices = started if started > 1 else wanted
    if devices == 1:
        return
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "0")) if started > 1 else 0
    command = format_torchrun_command(
        overrides, devices, per_node or config.cluster.devices_per_node, config_dir
    )
    raise UserError(
        "-m",
        f"(WORLD_SIZE={started})" if started > 1 else f"(trainer.devices={wanted})",
        "each job of a sweep is one process on one device. To use several devices, run the jobs without -m, "
        f"one after another: {command}",
    )


def format_torchrun_command(
    overrides: Sequence[str],
    num_devices: int,
    devices_per_node: int | None,
    config_dir: str | None = None,
) -> str:
    """Return the `torchrun` command that runs `growlm.train` with these overrides on several devices.

    Args:
        overrides: Overrides of the run.
        num_devices: Total number of devices.
        devices_per_node: Number of devices per node; None for a single node.
        config_dir: Config folder given by the user; None if there is none.
    """
    max_per_node = min(num_devices, devices_per_node or num_devices)
    per_node = next(n for n in range(max_per_node, 0, -1) if num_devices % n == 0)
    launcher = ["torchrun", "--nproc-per-node", str(per_node)]
    if per_node < num_devices:
        launcher[1:1] = ["--nnodes", str(num_devices // per_node), *RENDEZVOUS_ARGUMENTS.split()]
    folder = [] if config_dir is None else ["--config-dir", config_dir]
    return shlex.join([*launcher, "-m", "growlm.train", *folder, *map(format_as_typed, overrides)])
