"""The devices that a plan is reckoned for: this machine's, measured, or others, as `cluster` states them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace

import torch

from growlm.config.schema import ClusterConfig, RunConfig
from growlm.planner.calibration import ADAMW_TRAFFIC, CLIP_TRAFFIC, Calibration, calibration
from growlm.planner.communication_cost import Links
from growlm.runtime.device import pick_accelerator
from growlm.runtime.errors import UserError
from growlm.runtime.hardware import Machine, choose_precision, find_machine


def planned_machine(config: RunConfig) -> Machine:
    """What each device of the plan is.

    Raises:
        UserError: If it is neither here nor stated.
    """
    cluster, trainer = config.cluster, config.trainer
    if cluster.accelerator is None:
        accelerator = pick_accelerator(trainer.accelerator, "trainer.accelerator")
        machine = find_machine(trainer, processes_here(config, accelerator))
        if cluster.memory_gb is None or trainer.memory_gb is not None:
            return machine
        return replace(machine, memory=round(cluster.memory_gb * 1e9))
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
        precision = choose_precision(trainer, accelerator)
    return Machine(accelerator, precision, round(memory * 1e9))


def planned_speed(
    config: RunConfig, machine: Machine, tell: Callable[[], None], anew: bool = False
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
        return calibration(machine, tell, anew).shared_by(_sharing_rates(config, machine))
    products = cluster.peak_tflops * 1e12 * cluster.mfu
    assert cluster.memory_gb_per_s is not None
    entry = machine.weight_dtype.itemsize * (ADAMW_TRAFFIC + CLIP_TRAFFIC)
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


def links_of(cluster: ClusterConfig, accelerator: str) -> Links:
    """How the devices reach one another."""
    return Links(
        per_node=node_size(cluster, accelerator),
        inside=cluster.link_gb_per_s * 1e9 * cluster.efficiency,
        between=cluster.network_gb_per_s * 1e9 * cluster.efficiency,
        latency=cluster.latency_us * 1e-6,
    )


def node_size(cluster: ClusterConfig, accelerator: str) -> int:
    """Devices of a node: as stated, else as torchrun has started them, else as many as there are here."""
    if cluster.devices_per_node is not None:
        return cluster.devices_per_node
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    if accelerator == "gpu":
        return max(1, torch.cuda.device_count())
    return torch.get_num_threads()


def processes_here(config: RunConfig, accelerator: str) -> int:
    """Processes of the plan that a machine like this one has."""
    return min(config.trainer.devices or 1, node_size(config.cluster, accelerator))


def _sharing_rates(config: RunConfig, machine: Machine) -> int:
    """Processes that share the rates which were measured: under torchrun each has threads of its own."""
    is_shared = machine.accelerator == "cpu" and "LOCAL_WORLD_SIZE" not in os.environ
    return processes_here(config, machine.accelerator) if is_shared else 1
