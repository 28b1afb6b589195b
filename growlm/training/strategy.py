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
from growlm.distributed.process_group import DistributedContext
from growlm.runtime.errors import UserError


def resolve_num_devices(config: RunConfig, dist_context: DistributedContext) -> RunConfig:
    """The config with the number of devices that there are.

    Raises:
        UserError: If others are asked for, or the plan cannot be shared by them.
    """
    wanted = config.trainer.devices
    if wanted is not None and wanted != dist_context.world_size:
        if dist_context.world_size > 1:
            allowed = f"torchrun has started {dist_context.world_size} processes: trainer.devices={dist_context.world_size}"
        else:
            allowed = f"every device needs a process: torchrun --nproc-per-node {wanted} ..."
        raise UserError("trainer.devices", wanted, allowed)
    if dist_context.world_size % dist_context.local_world_size:
        allowed = (
            f"every machine must run as many processes; {dist_context.local_world_size} run here"
        )
        raise UserError("trainer.devices", dist_context.world_size, allowed)
    if dist_context.world_size > 1 and config.reuse.phases == "always":
        allowed = f"runs on several devices ({dist_context.world_size}) neither keep phases nor take them over"
        raise UserError("reuse.phases", "always", allowed)
    return replace(config, trainer=replace(config.trainer, devices=dist_context.world_size))


def resolve_strategy(settings: TrainerConfig) -> str:
    """What several devices share."""
    return "ddp" if settings.strategy == "auto" else settings.strategy


def describe_devices(
    accelerator: str, dist_context: DistributedContext, settings: TrainerConfig
) -> str:
    """For people: `cpu`, or `4 × gpu, ddp`."""
    if dist_context.world_size == 1:
        return accelerator
    return f"{dist_context.world_size} × {accelerator}, {resolve_strategy(settings)}"


def build_device_mesh(
    dist_context: DistributedContext, settings: TrainerConfig, accelerator: str
) -> DeviceMesh | None:
    """The processes that a model is divided among (FSDP2); None if each has all of it."""
    if dist_context.world_size == 1 or resolve_strategy(settings) != "fsdp":
        return None
    return init_device_mesh("cuda" if accelerator == "gpu" else "cpu", (dist_context.world_size,))


def build_trainer_device_args(
    dist_context: DistributedContext, settings: TrainerConfig, precision: str
) -> dict[str, Any]:
    """What Lightning's `Trainer` is told of the devices and the precision."""
    if dist_context.world_size == 1:
        return {"devices": 1, "precision": precision}
    timeout = timedelta(minutes=settings.timeout_minutes)
    told: dict[str, Any] = {
        "devices": dist_context.local_world_size,
        "num_nodes": dist_context.world_size // dist_context.local_world_size,
        "precision": precision,
        "plugins": [TorchElasticEnvironment()],
        "use_distributed_sampler": False,  # the batches are shared out already
    }
    if resolve_strategy(settings) == "ddp":
        return told | {"strategy": DDPStrategy(timeout=timeout, gradient_as_bucket_view=True)}
    strategy = ModelParallelStrategy(
        dist_context.world_size, tensor_parallel_size=1, timeout=timeout
    )
    if precision == "64-true":  # Lightning refuses to shard under this name
        del told["precision"]
        told["plugins"].append(DoublePrecision())
    return told | {"strategy": strategy}
