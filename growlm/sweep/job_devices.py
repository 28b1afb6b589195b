"""A job of a sweep is one process on one device; several devices are a run of their own, under `torchrun`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from omegaconf import DictConfig

from growlm.runtime.errors import UserError

RENDEZVOUS_ARGUMENTS = "--rdzv-backend c10d --rdzv-endpoint FIRST_NODE:29500"
"""What `torchrun` needs on every node where there are several."""


def reject_multi_device_job(
    overrides: Sequence[str], config: DictConfig, config_dir: str | None
) -> None:
    """Refuse a job on several devices: under `torchrun` every process would run the whole sweep.

    Args:
        job: Its overrides, without those for Hydra.
        config: What they compose to.
        config_dir: The user's own folder of configs.

    Raises:
        UserError: With the command that runs this job by itself.
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
        "a job of a sweep is one process on one device, and under torchrun every process would run the whole "
        f"sweep. On several devices run the jobs without -m, one after another: {command}",
    )


def format_torchrun_command(
    overrides: Sequence[str],
    num_devices: int,
    devices_per_node: int | None,
    config_dir: str | None = None,
) -> str:
    """The command that runs a plan on several devices, ready for a shell.

    Args:
        overrides: Of the run.
        devices: In all.
        per_node: Devices of a node; None for all of them.
        config_dir: The user's own folder of configs.
    """
    room = min(num_devices, devices_per_node or num_devices)
    each = next(n for n in range(room, 0, -1) if num_devices % n == 0)
    places = ["torchrun", "--nproc-per-node", str(each)]
    if each < num_devices:
        places[1:1] = ["--nnodes", str(num_devices // each), *RENDEZVOUS_ARGUMENTS.split()]
    folder = [] if config_dir is None else ["--config-dir", config_dir]
    return shlex.join([*places, "-m", "growlm.train", *folder, *overrides])
