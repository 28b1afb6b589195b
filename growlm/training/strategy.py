"""Resolve the number of devices and the strategy of a run, and build the `Trainer` arguments for them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from growlm.config.schema import RunConfig, TrainerConfig
from growlm.distributed.launch_environment import explain_num_processes
from growlm.distributed.process_group import DistributedContext
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import is_distributed


def resolve_num_devices(config: RunConfig, dist_context: DistributedContext) -> RunConfig:
    """Return the config with `trainer.devices` set to the number of processes.

    Raises:
        UserError: If another number was requested, or the run cannot use several devices.
    """
    requested = config.trainer.devices
    if requested is not None and requested != dist_context.world_size:
        if dist_context.world_size > 1:
            reason = explain_num_processes(dist_context.world_size, requested)
        else:
            reason = f"each device needs its own process; start with torchrun --nproc-per-node {requested} ..."
        raise UserError("trainer.devices", requested, reason)
    if dist_context.world_size % dist_context.local_world_size:
        reason = (
            "every machine must run the same number of processes; "
            f"this one runs {dist_context.local_world_size}"
        )
        raise UserError("trainer.devices", dist_context.world_size, reason)
    if dist_context.world_size > 1 and config.reuse.phases == "always":
        reason = (
            f"phases cannot be cached or reused on several devices ({dist_context.world_size}); "
            "use reuse.phases=never"
        )
        raise UserError("reuse.phases", "always", reason)
    return replace(config, trainer=replace(config.trainer, devices=dist_context.world_size))


def resolve_strategy(settings: TrainerConfig) -> str:
    """Return the strategy for several devices: `auto` means `ddp`."""
    return "ddp" if settings.strategy == "auto" else settings.strategy


def describe_devices(
    accelerator: str, dist_context: DistributedContext, settings: TrainerConfig
) -> str:
    """Return a description such as `cpu` or `4 × gpu, ddp`."""
    if dist_context.world_size == 1:
        return accelerator
    return f"{dist_context.world_size} × {accelerator}, {resolve_strategy(settings)}"


def build_device_mesh(
    dist_context: DistributedContext, settings: TrainerConfig, accelerator: str
) -> DeviceMesh | None:
    """Build the mesh of processes that shard the model (FSDP2); None if each process holds all of it."""
    if dist_context.world_size == 1 or resolve_strategy(settings) != "fsdp":
        return None
    return init_device_mesh("cuda" if accelerator == "gpu" else "cpu", (dist_context.world_size,))


def build_trainer_device_args(
    dist_context: DistributedContext, settings: TrainerConfig, precision: str
) -> dict[str, Any]:
    """Return the arguments of Lightning's `Trainer` for devices, precision and strategy."""
    # Lightning would look for launchers itself: it refuses SLURM jobs that differ from what it expects, and puts
    # others into the queue again after signals that growlm handles.
    if dist_context.world_size == 1:
        alone = TorchElasticEnvironment() if is_distributed() else LightningEnvironment()
        return {"devices": 1, "precision": precision, "plugins": [alone]}
    timeout = timedelta(minutes=settings.timeout_minutes)
    trainer_args: dict[str, Any] = {
        "devices": dist_context.local_world_size,
        "num_nodes": dist_context.world_size // dist_context.local_world_size,
        "precision": precision,
        "plugins": [TorchElasticEnvironment()],
        "use_distributed_sampler": False,  # growlm splits the batches itself
    }
    if resolve_strategy(settings) == "ddp":
        return trainer_args | {
            "strategy": DDPStrategy(timeout=timeout, gradient_as_bucket_view=True)
        }
    strategy = ModelParallelStrategy(
        dist_context.world_size, tensor_parallel_size=1, timeout=timeout
    )
    if precision == "64-true":  # Lightning refuses to shard under this name
        del trainer_args["precision"]
        trainer_args["plugins"].append(DoublePrecision())
    return trainer_args | {"strategy": strategy}
