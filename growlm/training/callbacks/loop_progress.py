"""Set the progress of Lightning's loops after a resume, so that steps and batches are counted on."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer


def set_loop_progress(trainer: Trainer, steps: int, accumulate: int) -> None:
    """Set the loop counters of a new Trainer so that it continues after the given step.

    Args:
        trainer: Trainer with a phase's full number of steps.
        steps: Optimizer steps of the phase that are done.
        accumulate: Forward passes per step.
    """
    batches = steps * accumulate
    # The state of a checkpoint that is written in `on_train_batch_end`, before the batch counts as completed.
    batch = {
        "ready": batches,
        "started": batches,
        "processed": batches,
        "completed": batches - 1,
    }
    epoch = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    done = {"ready": steps, "completed": steps}
    zeroed = {**done, "started": steps}
    state: dict[str, Any] = trainer.fit_loop.state_dict()
    state["epoch_progress"] = {"total": epoch, "current": epoch}
    state["epoch_loop.state_dict"] = {"_batches_that_stepped": steps - 1}
    state["epoch_loop.batch_progress"] |= {"total": batch, "current": batch}
    state["epoch_loop.scheduler_progress"] = {"total": done, "current": done}
    state["epoch_loop.automatic_optimization.optim_progress"] = {
        "optimizer": {
            "step": {"total": done, "current": done},
            "zero_grad": {"total": zeroed, "current": zeroed},
        }
    }
    trainer.fit_loop.load_state_dict(state)
