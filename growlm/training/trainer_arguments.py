"""Pass further arguments to `lightning.Trainer` (`trainer.extra.profiler=simple`), but those that growlm sets."""

from __future__ import annotations

import difflib
import inspect
import logging
import warnings
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment

from growlm.config.instantiate import instantiate_nested, summarize
from growlm.config.schema import TrainerConfig
from growlm.runtime.errors import UserError

KEY = "trainer.extra"
LENGTH = "a phase's length is phases.NAME.steps, tokens or flops"
VALIDATION = "set trainer.validate_every and trainer.validation_sequences"
WHOLE_PHASES = "growlm trains whole phases; set phases.NAME.steps for a short one"
SET_BY_GROWLM = {
    "accelerator": "set trainer.accelerator",
    "strategy": "set trainer.strategy",
    "devices": "set trainer.devices",
    "num_nodes": "start the processes with torchrun or srun",
    "precision": "set trainer.precision",
    "logger": "set logger, or logger.extra for further ones",
    "callbacks": "set callbacks.extra",
    "max_epochs": LENGTH,
    "min_epochs": LENGTH,
    "max_steps": LENGTH,
    "min_steps": LENGTH,
    "max_time": "set trainer.max_time, which also writes a state to resume from",
    "fast_dev_run": WHOLE_PHASES,
    "limit_train_batches": WHOLE_PHASES,
    "overfit_batches": WHOLE_PHASES,
    "limit_val_batches": VALIDATION,
    "limit_test_batches": "growlm.evaluate tests a checkpoint",
    "limit_predict_batches": "growlm.generate predicts with a checkpoint",
    "num_sanity_val_steps": VALIDATION,
    "val_check_interval": VALIDATION,
    "check_val_every_n_epoch": VALIDATION,
    "log_every_n_steps": "set callbacks.log_every",
    "enable_checkpointing": "growlm saves by phase and by time: phases.NAME.save_as, checkpoint.every_minutes",
    "enable_progress_bar": "growlm shows its own progress",
    "barebones": "growlm needs the callbacks and loggers that it switches off",
    "accumulate_grad_batches": "set phases.NAME.accumulate",
    "gradient_clip_val": "set optimizer.gradient_clip",
    "gradient_clip_algorithm": "set optimizer.gradient_clip, which limits the global norm",
    "use_distributed_sampler": "growlm splits the batches itself",
    "reload_dataloaders_every_n_epochs": "a phase is one epoch",
    "default_root_dir": "set run_dir",
}
"""Arguments that growlm sets itself, and what to set instead."""


def build_trainer(settings: TrainerConfig, **arguments: Any) -> Trainer:
    """Build a Trainer with growlm's arguments and those of `trainer.extra`; lists of plugins are joined.

    Args:
        settings: Settings with the further arguments.
        arguments: Arguments that growlm sets.

    Raises:
        UserError: If an argument is unknown, set by growlm, or names a class that cannot be instantiated.
    """
    known = [name for name in inspect.signature(Trainer.__init__).parameters if name != "self"]
    extra = {}
    for name, value in settings.extra.items():
        if name in SET_BY_GROWLM:
            raise UserError(f"{KEY}.{name}", value, f"is set by growlm; {SET_BY_GROWLM[name]}")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = (
                f"did you mean {near[0]}?" if near else "see the documentation of lightning.Trainer"
            )
            raise UserError(f"{KEY}.{name}", value, f"the Trainer has no such argument; {hint}")
        extra[name] = instantiate_nested(f"{KEY}.{name}", value)
    if "plugins" in extra:
        own = extra["plugins"] if isinstance(extra["plugins"], list) else [extra["plugins"]]
        extra["plugins"] = [*arguments.get("plugins", []), *own]
    return Trainer(**arguments | extra)


def check_extra_arguments(settings: TrainerConfig) -> None:
    """Check that a Trainer can be built with the arguments of `trainer.extra`.

    Raises:
        UserError: If it cannot.
    """
    if not settings.extra:
        return
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            build_trainer(
                settings,
                accelerator="cpu",
                devices=1,
                plugins=[LightningEnvironment()],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
    except UserError:
        raise
    except Exception as error:  # Lightning and the classes of the user may raise anything
        reason = f"the Trainer cannot be built with it: {summarize(error)}"
        raise UserError(KEY, settings.extra, reason) from error
    finally:
        logger.setLevel(level)
