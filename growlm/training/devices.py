"""The devices of a run: whether they can share its plan, and how Lightning sees them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from growlm.config.schema import RunConfig, TrainerConfig
from growlm.errors import UserError
from growlm.world import World


def with_devices(config: RunConfig, world: World) -> RunConfig:
    """The config with the number of devices that there are.

    Raises:
        UserError: If others are asked for, or the plan cannot be shared by them.
    """
    wanted = config.trainer.devices
    if wanted is not None and wanted != world.size:
        if world.size > 1:
            allowed = f"torchrun has started {world.size} processes"
        else:
            allowed = f"every device needs a process: torchrun --nproc-per-node {wanted} ..."
        raise UserError("trainer.devices", wanted, allowed)
    if world.size > 1 and config.reuse.phases == "always":
        allowed = f"runs on several devices ({world.size}) neither keep phases nor take them over"
        raise UserError("reuse.phases", "always", allowed)
    return replace(config, trainer=replace(config.trainer, devices=world.size))


def describe_devices(accelerator: str, world: World, settings: TrainerConfig) -> str:
    """For people: `cpu`, or `4 × gpu, ddp`."""
    if world.size == 1:
        return accelerator
    return f"{world.size} × {accelerator}, {strategy_of(settings)}"


def strategy_of(settings: TrainerConfig) -> str:
    """What several devices share."""
    return "ddp" if settings.strategy == "auto" else settings.strategy


def devices_of(world: World, settings: TrainerConfig) -> dict[str, Any]:
    """What Lightning's `Trainer` is told of the devices."""
    if world.size == 1:
        return {"devices": 1}
    strategy = DDPStrategy(
        timeout=timedelta(minutes=settings.timeout_minutes),
        gradient_as_bucket_view=True,
    )
    return {
        "devices": world.local_size,
        "num_nodes": world.size // world.local_size,
        "strategy": strategy,
        "plugins": [TorchElasticEnvironment()],
        "use_distributed_sampler": False,  # the batches are shared out already
    }
