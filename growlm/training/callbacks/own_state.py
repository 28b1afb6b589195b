"""Save and restore what the user's own classes keep outside of models and optimizer states."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from growlm.config.schema import OWN
from growlm.data.own_data import OwnSamples
from growlm.training.run_context import RunContext

SET_BY_GROWLM = ("params", "lr", "initial_lr", "weight_decay")
DATA_NAME = "growlm: data"
PLAIN = (bool, int, float, str, type(None), Tensor)


def build_state_callbacks(context: RunContext) -> dict[str, Callback]:
    """Return callbacks whose state is that of the user's own classes, by name."""
    callbacks: dict[str, Callback] = {}
    if context.config.optimizer.name == OWN:
        callbacks["growlm: optimizer groups"] = OptimizerGroupsCallback()
    if isinstance(context.data.train, OwnSamples):
        callbacks[DATA_NAME] = _DataStateCallback(context.data.train)
    return callbacks


def get_own_data_state(context: RunContext) -> dict[str, Any]:
    """Return the state of the user's own data for a resume state between two phases; empty if there is none."""
    train = context.data.train
    state = train.get_state() if isinstance(train, OwnSamples) else {}
    return {DATA_NAME: state} if state else {}


def restore_own_data(context: RunContext, states: dict[str, Any]) -> None:
    """Restore the user's own data from the callback states of a resume state."""
    if isinstance(context.data.train, OwnSamples):
        context.data.train.restore_state(states.get(DATA_NAME, {}))


class _DataStateCallback(Callback):
    """Callback that saves the user's own data, which `restore_own_data` restores."""

    def __init__(self, train: OwnSamples) -> None:
        self._train = train

    def state_dict(self) -> dict[str, Any]:
        """Return where the data is."""
        return self._train.get_state()


class OptimizerGroupsCallback(Callback):
    """Callback that saves what an optimizer keeps in its parameter groups, such as a step size that it adapts."""

    def __init__(self) -> None:
        self._trainer: Trainer | None = None
        self._restored: list[dict[str, Any]] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the groups of a resumed phase."""
        self._trainer = trainer
        if self._restored is not None:
            groups = trainer.optimizers[0].param_groups
            for group, restored in zip(groups, self._restored, strict=True):
                group.update(restored)

    def state_dict(self) -> dict[str, Any]:
        """Return the plain values of all groups that growlm does not set itself."""
        assert self._trainer is not None
        groups = [
            {key: value for key, value in group.items() if _is_saved(key, value)}
            for group in self._trainer.optimizers[0].param_groups
        ]
        return {"groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what `state_dict` returned until the optimizer exists."""
        self._restored = state_dict["groups"]


def _is_saved(key: str, value: Any) -> bool:
    if key in SET_BY_GROWLM:
        return False
    items = value if isinstance(value, list | tuple) else (value,)
    return all(isinstance(item, PLAIN) for item in items)
