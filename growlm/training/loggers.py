"""The logger that the config asks for."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from growlm.config.schema import LoggerConfig, RunConfig
from growlm.errors import UserError


def build_logger(config: RunConfig, run_dir: Path) -> Logger | None:
    """One of Lightning's loggers, writing into the run's folder; None for `none`."""
    settings = config.logger
    if settings.name == "wandb":
        logger = WandbLogger(
            project=settings.project,
            entity=settings.entity,
            name=run_dir.name,
            group=settings.group,
            tags=[config.name, *settings.tags],
            save_dir=run_dir,
            offline=not _is_online(settings),
            settings=_quiet_settings(),
        )
        logger.experiment.config.update(asdict(config))
        return logger
    if settings.name == "csv":
        return CSVLogger(run_dir, name="", version="csv")
    if settings.name == "tensorboard":
        return TensorBoardLogger(run_dir, name="", version="tensorboard")
    return None


def check_logger(settings: LoggerConfig) -> None:
    """Find out beforehand what the logger will need.

    Raises:
        UserError: If W&B is to be online without a login, or a package is missing.
    """
    if settings.name == "wandb" and settings.mode == "online" and not _has_login():
        raise UserError(
            "logger.mode", "online", "you are not logged in: `wandb login`, or use logger.mode=offline"
        )
    if settings.name == "tensorboard":
        try:
            import tensorboard  # noqa: F401
        except ImportError as error:
            raise UserError("logger", "tensorboard", "needs `pip install tensorboard`") from error


def _is_online(settings: LoggerConfig) -> bool:
    return settings.mode == "online" or (settings.mode == "auto" and _has_login())


def _has_login() -> bool:
    import wandb

    return bool(wandb.Api.__module__) and bool(wandb.api.api_key)


def _quiet_settings() -> object:
    import wandb

    return wandb.Settings(silent=True)
