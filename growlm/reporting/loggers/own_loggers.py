"""Build the Lightning loggers that the config names under `logger._target_` and `logger.extra`."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

from growlm.config.flatten import flatten_config
from growlm.config.instantiate import check_target, find_object, instantiate_target
from growlm.config.own_classes import TARGET, get_spec
from growlm.config.schema import OWN, RunConfig
from growlm.runtime.errors import UserError

SAVE_DIR = "save_dir"
WRITES_LATER = (CSVLogger, TensorBoardLogger, MLFlowLogger, WandbLogger)
"""Loggers that do nothing until they are used, so that one can be built as a check."""


def build_own_loggers(config: RunConfig, run_dir: Path) -> list[Logger]:
    """Build the loggers, and give each the config as its hyperparameters.

    Args:
        config: Config of the run.
        run_dir: Folder of the run: the `save_dir` of a logger that needs one and is given none.
    """
    hyperparameters = dict(flatten_config(asdict(config)))
    loggers = []
    for key, spec in _list_specs(config):
        logger: Logger = instantiate_target(key, _with_save_dir(key, spec, run_dir), Logger)
        logger.log_hyperparams(hyperparameters)
        loggers.append(logger)
    return loggers


def check_own_loggers(config: RunConfig) -> None:
    """Check before the run that the loggers can be built.

    Raises:
        UserError: If one is not a Lightning logger, or its arguments do not fit.
    """
    for key, spec in _list_specs(config):
        found = check_target(key, spec, Logger)
        if found in WRITES_LATER:
            with tempfile.TemporaryDirectory() as folder:
                instantiate_target(key, _with_save_dir(key, spec, Path(folder)), Logger)
            continue
        complete = _with_save_dir(key, spec, Path())
        names = [name for name in complete if name not in (TARGET, "_args_", "_partial_")]
        try:
            inspect.signature(found).bind(*spec.get("_args_", ()), **dict.fromkeys(names))
        except TypeError as error:
            raise UserError(key, spec[TARGET], f"cannot be instantiated: {error}") from error


def _list_specs(config: RunConfig) -> Iterator[tuple[str, Any]]:
    if config.logger.name == OWN:
        yield "logger", get_spec(config, "logger")
    for name, spec in config.logger.extra.items():
        yield f"logger.extra.{name}", spec


def _with_save_dir(key: str, spec: Any, run_dir: Path) -> Any:
    """Return the spec with the run's folder as `save_dir`, if the class cannot do without and none is given."""
    if not isinstance(spec, dict) or spec.get(TARGET) is None or SAVE_DIR in spec:
        return spec
    parameters = inspect.signature(find_object(f"{key}.{TARGET}", spec[TARGET])).parameters
    if SAVE_DIR not in parameters or parameters[SAVE_DIR].default is not inspect.Parameter.empty:
        return spec
    return {**spec, SAVE_DIR: str(run_dir)}
