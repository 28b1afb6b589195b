"""Collect and restore the state of the user's callbacks, as Lightning's checkpoints do."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer

from growlm.distributed.dtensors import get_full_tensor

HOOK_ENTRIES = {"state_dict", "checkpoint", "equal_to_model"}
"""Entries of the state of a callback with the hook `on_save_checkpoint`."""


def collect_callback_state(
    callback: Callback, trainer: Trainer, pl_module: LightningModule
) -> dict[str, Any]:
    """Return the state of a callback, and what its hook `on_save_checkpoint` adds to a checkpoint.

    Args:
        callback: Callback of the user.
        trainer: Trainer of the phase.
        pl_module: Module of the phase; all processes must call this if its model is sharded.
    """
    state = callback.state_dict()
    if type(callback).on_save_checkpoint is Callback.on_save_checkpoint:
        return state
    weights = {name: get_full_tensor(t) for name, t in pl_module.state_dict().items()}
    checkpoint = _make_checkpoint(trainer, weights)
    before = dict(checkpoint)
    callback.on_save_checkpoint(trainer, pl_module, checkpoint)
    equal = [key for key, value in checkpoint.items() if value is weights]
    added = {
        key: value
        for key, value in checkpoint.items()
        if value is not weights and before.get(key) is not value
    }
    return {"state_dict": state, "checkpoint": added, "equal_to_model": equal}


def _make_checkpoint(trainer: Trainer, weights: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a Lightning checkpoint that the hooks of callbacks find."""
    return {"state_dict": weights, "epoch": 0, "global_step": trainer.global_step}


def restore_callback_state(
    callback: Callback, state: dict[str, Any], trainer: Trainer, pl_module: LightningModule
) -> None:
    """Restore what `collect_callback_state` returned, after the callback's `setup`.

    A `Timer` counts from where the run was started or resumed, as `trainer.max_time` does.
    """
    if isinstance(callback, Timer):
        return
    if state.keys() == HOOK_ENTRIES:
        weights = pl_module.state_dict()
        checkpoint = _make_checkpoint(trainer, weights)
        checkpoint |= state["checkpoint"] | dict.fromkeys(state["equal_to_model"], weights)
        callback.on_load_checkpoint(trainer, pl_module, checkpoint)
        state = state["state_dict"]
    callback.load_state_dict(state)
