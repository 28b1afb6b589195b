"""Resolve the devices that a plan is estimated for: this machine's, or those that `cluster` describes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace

import torch

from growlm.config.schema import ClusterConfig, RunConfig
from growlm.planner.calibration import (
    ADAMW_MEMORY_PASSES,
    CLIP_MEMORY_PASSES,
    Calibration,
    load_or_measure_calibration,
)
from growlm.planner.communication_cost import Interconnect
from growlm.runtime.device import resolve_accelerator
from growlm.runtime.errors import UserError
from growlm.runtime.hardware import Machine, detect_machine, resolve_precision


def resolve_machine(config: RunConfig) -> Machine:
    """Return the machine that each device of the plan is.

    Raises:
        UserError: If the device is neither available here nor described by `cluster`.
    """
    cluster, trainer = config.cluster, config.trainer
    if cluster.accelerator is None:
        accelerator = resolve_accelerator(trainer.accelerator, "trainer.accelerator")
        machine = detect_machine(trainer, num_local_processes(config, accelerator))
        if cluster.memory_gb is None or trainer.memory_gb is not None:
            return machine
        return replace(machine, memory_bytes=round(cluster.memory_gb * 1e9))
    accelerator = cluster.accelerator
    if trainer.accelerator not in ("auto", accelerator):
        reason = (
            f"conflicts with cluster.accelerator={accelerator}; "
            "use trainer.accelerator=auto, or cluster=here for this machine's devices"
        )
        raise UserError("trainer.accelerator", trainer.accelerator, reason)
    memory = trainer.memory_gb or cluster.memory_gb
    assert memory is not None  # by `check_config`
    if trainer.precision != "auto":
        precision = trainer.precision
    elif accelerator == "gpu":
        precision = "bf16-mixed"
    else:
        precision = resolve_precision(trainer, accelerator)
    return Machine(accelerator, precision, round(memory * 1e9))


def resolve_calibration(
    config: RunConfig, machine: Machine, on_measure: Callable[[], None], force: bool = False
) -> Calibration:
    """Return the rates of each device: as `cluster` states them, otherwise as measured on this machine.

    Args:
        config: Config of the run.
        machine: Machine that each device is.
        on_measure: Function called before measuring.
        force: Whether to measure even if a calibration is cached.
    """
    cluster = config.cluster
    if cluster.peak_tflops is None:
        return load_or_measure_calibration(machine, on_measure, force).split_among(
            _num_processes_sharing_machine(config, machine)
        )
    flops = cluster.peak_tflops * 1e12 * cluster.mfu
    assert cluster.memory_gb_per_s is not None
    bytes_per_parameter = machine.weight_dtype.itemsize * (ADAMW_MEMORY_PASSES + CLIP_MEMORY_PASSES)
    return Calibration(
        half_flops=flops,
        single_flops=flops,
        # The MFU covers everything that is not a matrix product.
        other_bytes=math.inf,
        fresh_bytes=math.inf,
        again_bytes=math.inf,
        adamw_entries=cluster.memory_gb_per_s * 1e9 / bytes_per_parameter,
        call=0.0,
    )


def build_interconnect(cluster: ClusterConfig, accelerator: str) -> Interconnect:
    """Return the links between the devices, as `cluster` states them."""
    return Interconnect(
        devices_per_node=devices_per_node(cluster, accelerator),
        intra_node_bandwidth=cluster.link_gb_per_s * 1e9 * cluster.efficiency,
        inter_node_bandwidth=cluster.network_gb_per_s * 1e9 * cluster.efficiency,
        latency_seconds=cluster.latency_us * 1e-6,
    )


def devices_per_node(cluster: ClusterConfig, accelerator: str) -> int:
    """Return the devices per node: as `cluster` states them, else as torchrun started them, else as found here."""
    if cluster.devices_per_node is not None:
        return cluster.devices_per_node
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    if accelerator == "gpu":
        return max(1, torch.cuda.device_count())
    return torch.get_num_threads()


def num_local_processes(config: RunConfig, accelerator: str) -> int:
    """Return the number of the plan's processes that run on one node."""
    return min(config.trainer.devices or 1, devices_per_node(config.cluster, accelerator))


def _num_processes_sharing_machine(config: RunConfig, machine: Machine) -> int:
    """Return how many processes share the measured rates: 1 under torchrun, where each has its own threads."""
    is_shared = machine.accelerator == "cpu" and "LOCAL_WORLD_SIZE" not in os.environ
    return num_local_processes(config, machine.accelerator) if is_shared else 1
