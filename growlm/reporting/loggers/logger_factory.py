"""Create the Lightning loggers that the config selects."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from growlm.config.flatten import flatten_config
from growlm.config.schema import RunConfig
from growlm.reporting.loggers.own_loggers import build_own_loggers, check_own_loggers
from growlm.reporting.loggers.wandb_settings import (
    DEFAULT_PROJECT,
    describe_unused_variables,
    resolve_wandb_settings,
)


def build_loggers(
    config: RunConfig, run_dir: Path, run_id: str, first_step: int | None = None
) -> list[Logger]:
    """Return the run's loggers: the shipped one, or the user's own, and further ones. See `build_logger`."""
    shipped = build_logger(config, run_dir, run_id, first_step)
    return [*([] if shipped is None else [shipped]), *build_own_loggers(config, run_dir)]


def build_logger(
    config: RunConfig, run_dir: Path, run_id: str, first_step: int | None = None
) -> Logger | None:
    """Return a shipped logger that writes into the run's folder, or None for `none` and `own`.

    Args:
        config: Config of the run.
        run_dir: Folder of the run.
        run_id: W&B id of the run.
        first_step: Last step before the resume, for a resumed run; otherwise None. W&B and trackio continue the
            same run, TensorBoard hides its entries of later steps, and the CSV logger starts another folder.
    """
    settings = config.logger
    resumed = "" if first_step is None else f"_from_step_{first_step}"
    if settings.name == "wandb":
        import wandb

        run = wandb.init(
            **asdict(resolve_wandb_settings(config, run_dir.name)),
            id=run_id,
            resume="allow" if resumed else None,
            config=asdict(replace(config, resume=None)),
            dir=str(run_dir),  # older wandb releases do not accept a Path
            settings=wandb.Settings(silent=True),
        )
        return WandbLogger(experiment=run)
    if settings.name == "csv":
        # Flushed after every row, so that a killed run loses nothing.
        return CSVLogger(run_dir, name="", version=f"csv{resumed}", flush_logs_every_n_steps=1)
    if settings.name == "tensorboard":
        purge_step = None if first_step is None else first_step + 1
        return TensorBoardLogger(run_dir, name="", version="tensorboard", purge_step=purge_step)
    if settings.name == "trackio":
        from growlm.reporting.loggers.trackio_logger import TrackioLogger

        return TrackioLogger(
            settings.project or DEFAULT_PROJECT,
            run_dir.name,
            settings.group,
            dict(flatten_config(asdict(replace(config, resume=None)))),
            resume=first_step is not None,
        )
    return None


def check_logger(config: RunConfig) -> list[str]:
    """Check before the run that its loggers can be used; return notes for the user.

    Raises:
        UserError: If W&B would refuse a setting or an environment variable, or is to be used online without a
            login, or a logger of the user's own cannot be built.
    """
    check_own_loggers(config)
    if config.logger.name != "wandb":
        return []
    resolve_wandb_settings(config, config.name)
    return describe_unused_variables()
