"""The devices that a plan is reckoned for: this machine's, measured, or others, as `cluster` states them."""

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
    """What each device of the plan is.

    Raises:
        UserError: If it is neither here nor stated.
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
        allowed = f"cluster.accelerator={accelerator}; leave it at auto, or plan for devices like this machine's"
        raise UserError("trainer.accelerator", trainer.accelerator, allowed)
    memory = trainer.memory_gb or cluster.memory_gb
    assert memory is not None  # checked
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
    """What a second of each device holds: as stated, else as measured here.

    Args:
        config: The plan.
        machine: What each device is.
        tell: Called before measuring.
        anew: Measure in any case.
    """
    cluster = config.cluster
    if cluster.peak_tflops is None:
        return load_or_measure_calibration(machine, on_measure, force).split_among(
            _num_processes_sharing_machine(config, machine)
        )
    products = cluster.peak_tflops * 1e12 * cluster.mfu
    assert cluster.memory_gb_per_s is not None
    entry = machine.weight_dtype.itemsize * (ADAMW_MEMORY_PASSES + CLIP_MEMORY_PASSES)
    return Calibration(
        half_flops=products,
        single_flops=products,
        # What is no product is in the MFU.
        other_bytes=math.inf,
        fresh_bytes=math.inf,
        again_bytes=math.inf,
        adamw_entries=cluster.memory_gb_per_s * 1e9 / entry,
        call=0.0,
    )


def build_interconnect(cluster: ClusterConfig, accelerator: str) -> Interconnect:
    """How the devices reach one another."""
    return Interconnect(
        devices_per_node=devices_per_node(cluster, accelerator),
        intra_node_bandwidth=cluster.link_gb_per_s * 1e9 * cluster.efficiency,
        inter_node_bandwidth=cluster.network_gb_per_s * 1e9 * cluster.efficiency,
        latency_seconds=cluster.latency_us * 1e-6,
    )


def devices_per_node(cluster: ClusterConfig, accelerator: str) -> int:
    """Devices of a node: as stated, else as torchrun has started them, else as many as there are here."""
    if cluster.devices_per_node is not None:
        return cluster.devices_per_node
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    if accelerator == "gpu":
        return max(1, torch.cuda.device_count())
    return torch.get_num_threads()


def num_local_processes(config: RunConfig, accelerator: str) -> int:
    """Processes of the plan that a machine like this one has."""
    return min(config.trainer.devices or 1, devices_per_node(config.cluster, accelerator))


def _num_processes_sharing_machine(config: RunConfig, machine: Machine) -> int:
    """Processes that share the rates which were measured: under torchrun each has threads of its own."""
    is_shared = machine.accelerator == "cpu" and "LOCAL_WORLD_SIZE" not in os.environ
    return num_local_processes(config, machine.accelerator) if is_shared else 1
