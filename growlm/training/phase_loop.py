"""Fit a LightningModule in phases, its model grown between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from growlm.growth.grow_model import Operator
from growlm.reporting.records import BoundaryRecord
from growlm.runtime.errors import UserError
from growlm.runtime.number_format import format_jump, format_loss
from growlm.training.callbacks.growth_callback import GrowthCallback
from growlm.training.phase_state import PhaseState


@rank_zero_only
def print_boundary(boundary: BoundaryRecord) -> None:
    """Print what was grown, the change of the loss, and the result of each check."""
    report = boundary.report
    growth = "; ".join(boundary.growth) or "no growth"
    print(f"{boundary.from_phase} → {boundary.to_phase}: {growth}")
    checks = ", ".join(f"{name} {check.status}" for name, check in report.checks.items())
    print(f"  loss {format_loss(report.loss_before)}, jump {format_jump(report.jump)}; {checks}")


def fit_phases(
    trainer_factory: Callable[..., Trainer],
    module: LightningModule,
    datamodule: LightningDataModule | Any,
    phases: Iterable[tuple[int, Sequence[Operator]]],
    *,
    on_boundary: Callable[[BoundaryRecord], None] = print_boundary,
    previous: PhaseState | None = None,
    **growth: Any,
) -> PhaseState:
    """Fit a LightningModule in phases, each with a new Trainer, and grow its model at the beginning of each.

    Args:
        trainer_factory: Function that returns a new Trainer, called with `max_steps` and `callbacks`, such as
            `functools.partial(Trainer, strategy="ddp", callbacks=[...])`. One of your own must append its
            callbacks to these.
        module: Module to train; it has the grown model afterwards.
        datamodule: Data module, or training loader, that every phase reads from its beginning.
        phases: Optimizer steps of each phase, and the operators that grow the model before it.
        on_boundary: Function called with the record of each growth, before an error for a failed check.
        previous: State to begin with; None for the module's own model.
        growth: Further arguments of every `GrowthCallback`: `attribute`, `optimizer_state`, `probe`, `seed` ...

    Returns:
        The state after the last phase.

    Raises:
        UserError: If there is no phase, or an argument is wrong.
        GrowthError: If a check failed.
    """
    state = previous
    for steps, operators in phases:
        callback = GrowthCallback(operators, previous=state, on_boundary=on_boundary, **growth)
        more = getattr(trainer_factory, "keywords", {}).get("callbacks") or []  # of a partial
        callbacks = [callback, *(more if isinstance(more, list) else [more])]
        trainer = trainer_factory(max_steps=steps, callbacks=callbacks)
        if not any(each is callback for each in trainer.callbacks):  # type: ignore[attr-defined]
            reason = "must give the Trainer the callbacks that it is called with"
            raise UserError("trainer_factory", trainer_factory, reason)
        trainer.fit(module, datamodule)
        state = PhaseState.from_trainer(trainer)
    if state is None:
        raise UserError("phases", [], "has no phase; give pairs of steps and operators")
    return state
