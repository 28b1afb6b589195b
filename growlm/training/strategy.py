"""The devices of a run: whether they can share its plan, and how Lightning sees them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from growlm.config.schema import RunConfig, TrainerConfig
from growlm.distributed.process_group import World
from growlm.runtime.errors import UserError


def with_devices(config: RunConfig, world: World) -> RunConfig:
    """The config with the number of devices that there are.

    Raises:
        UserError: If others are asked for, or the plan cannot be shared by them.
    """
    wanted = config.trainer.devices
    if wanted is not None and wanted != world.size:
        if world.size > 1:
            allowed = f"torchrun has started {world.size} processes: trainer.devices={world.size}"
        else:
            allowed = f"every device needs a process: torchrun --nproc-per-node {wanted} ..."
        raise UserError("trainer.devices", wanted, allowed)
    if world.size % world.local_size:
        allowed = f"every machine must run as many processes; {world.local_size} run here"
        raise UserError("trainer.devices", world.size, allowed)
    if world.size > 1 and config.reuse.phases == "always":
        allowed = f"runs on several devices ({world.size}) neither keep phases nor take them over"
        raise UserError("reuse.phases", "always", allowed)
    return replace(config, trainer=replace(config.trainer, devices=world.size))


def strategy_of(settings: TrainerConfig) -> str:
    """What several devices share."""
    return "ddp" if settings.strategy == "auto" else settings.strategy


def describe_devices(accelerator: str, world: World, settings: TrainerConfig) -> str:
    """For people: `cpu`, or `4 × gpu, ddp`."""
    if world.size == 1:
        return accelerator
    return f"{world.size} × {accelerator}, {strategy_of(settings)}"


def mesh_of_run(world: World, settings: TrainerConfig, accelerator: str) -> DeviceMesh | None:
    """The processes that a model is divided among (FSDP2); None if each has all of it."""
    if world.size == 1 or strategy_of(settings) != "fsdp":
        return None
    return init_device_mesh("cuda" if accelerator == "gpu" else "cpu", (world.size,))


def devices_of(world: World, settings: TrainerConfig, precision: str) -> dict[str, Any]:
    """What Lightning's `Trainer` is told of the devices and the precision."""
    if world.size == 1:
        return {"devices": 1, "precision": precision}
    timeout = timedelta(minutes=settings.timeout_minutes)
    told: dict[str, Any] = {
        "devices": world.local_size,
        "num_nodes": world.size // world.local_size,
        "precision": precision,
        "plugins": [TorchElasticEnvironment()],
        "use_distributed_sampler": False,  # the batches are shared out already
    }
    if strategy_of(settings) == "ddp":
        return told | {"strategy": DDPStrategy(timeout=timeout, gradient_as_bucket_view=True)}
    strategy = ModelParallelStrategy(world.size, tensor_parallel_size=1, timeout=timeout)
    if precision == "64-true":  # Lightning refuses to shard under this name
        del told["precision"]
        told["plugins"].append(DoublePrecision())
    return told | {"strategy": strategy}
