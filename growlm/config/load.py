"""From a composed Hydra config to a checked `RunConfig`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from growlm.config.schema import RunConfig
from growlm.config.starting_model import fill_from_checkpoint
from growlm.config.validation import check_config
from growlm.runtime.errors import UserError
from growlm.runtime.field_limits import check_limits

CommandT = TypeVar("CommandT")

SCHEMA_NAME = "run_schema"
ROOT_CONFIG_NAME = "train"
LAUNCHER_EXTRAS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit"}
"""Hydra's launchers that are packages of their own, and growlm's extra that installs each."""


def get_config_folder() -> Path:
    """The folder of `train.yaml`: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    candidates = [package / "conf", package.parent / "conf"]
    for folder in candidates:
        if (folder / f"{ROOT_CONFIG_NAME}.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no {ROOT_CONFIG_NAME}.yaml in {' or '.join(map(str, candidates))}")


def register_schema() -> None:
    """Make the schema known to Hydra, so that wrong keys and types are refused where they are written."""
    schema = OmegaConf.structured(RunConfig)
    for name in schema.model:
        if name != "path":  # the group's files say it, or else the folder of model=pretrained
            schema.model[name] = MISSING
    ConfigStore.instance().store(name=SCHEMA_NAME, node=schema)


def compose_run_config(overrides: Sequence[str]) -> DictConfig:
    """Compose the config of a run, as the command does with its arguments; not checked."""
    register_schema()
    with initialize_config_dir(str(get_config_folder()), version_base="1.3"):
        return compose(ROOT_CONFIG_NAME, overrides=list(overrides))


def load_config(*overrides: str) -> RunConfig:
    """Compose and check a config, as the command does with its arguments.

    Raises:
        UserError: If something asked for is wrong.
    """
    try:
        composed = compose_run_config(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise translate_hydra_error(error) from error
    return to_valid_run_config(composed)


def compose_command_config(
    config_name: str, schema: type[Any], overrides: Sequence[str]
) -> DictConfig:
    """Compose the config of a command that has a file and a schema of its own; not checked.

    Args:
        root: Its file in `conf/`, without the ending.
        schema: Its dataclass.
        overrides: `key=value` arguments.
    """
    ConfigStore.instance().store(name=f"{config_name}_schema", node=schema)
    with initialize_config_dir(str(get_config_folder()), version_base="1.3"):
        return compose(config_name, overrides=list(overrides))


def load_command_config(
    config_name: str, schema: type[CommandT], overrides: Sequence[str]
) -> CommandT:
    """Compose and check the config of a command; arguments as `compose_command`.

    Raises:
        UserError: If something asked for is wrong.
    """
    try:
        composed = compose_command_config(config_name, schema, overrides)
        reject_unknown_keys(composed)
        config = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        raise UserError(str(error.full_key), "???", "must be given") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise translate_hydra_error(error) from error
    assert isinstance(config, schema)
    check_limits(config)
    return config


def to_run_config(composed: DictConfig) -> RunConfig:
    """Make the dataclasses of a composed config; only types and keys are checked.

    Raises:
        UserError: Naming the key that was set.
    """
    reject_unknown_keys(composed)
    composed = composed.copy()
    try:
        fill_from_checkpoint(composed.model)
        config = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        raise UserError(
            str(error.full_key), "???", "is not set; the plan's file must set it"
        ) from error
    except OmegaConfBaseException as error:
        raise translate_hydra_error(error) from error
    assert isinstance(config, RunConfig)
    return config


def to_valid_run_config(composed: DictConfig) -> RunConfig:
    """Make the dataclasses of a composed config, every limit and cross-check held.

    Raises:
        UserError: Naming the key that was set, see `naming_set_keys`.
    """
    config = to_run_config(composed)
    with trace_interpolated_keys(composed):
        check_config(config)
    return config


@contextmanager
def trace_interpolated_keys(composed: DictConfig) -> Iterator[None]:
    """Let errors name the key that was set, where the plan's key only refers to it (`${growth.scale_factor}`).

    A run that is resumed has a config of its own, which refers to nothing.
    """
    try:
        yield
    except UserError as error:
        if composed.resume not in (None, "auto"):
            raise
        raise trace_interpolation(error, composed) from error


def reject_unknown_keys(node: DictConfig, prefix: str = "") -> None:
    """Keys that `+key=value` added beside the schema would be carried along and do nothing.

    Raises:
        UserError: Naming the first one, and the nearest key that exists.
    """
    schema = OmegaConf.get_type(node)
    known = list(getattr(schema, "__dataclass_fields__", {}))
    for key in node:
        full = f"{prefix}.{key!s}" if prefix else str(key)
        if known and key not in known and full != "hydra":
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise UserError(full, node[key], f"there is no such key; {hint}")
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, str(key)):
            continue
        child = node[key]
        if isinstance(child, DictConfig):
            reject_unknown_keys(child, full)
        if isinstance(child, ListConfig):
            for index, item in enumerate(child):
                if isinstance(item, DictConfig):
                    reject_unknown_keys(item, f"{full}.{index}")


def trace_interpolation(error: UserError, composed: DictConfig) -> UserError:
    """The error about the key that a person set, if the key at fault only refers to it."""
    parent, _, last = error.key.rpartition(".")
    node = (
        OmegaConf.select(composed, parent, throw_on_resolution_failure=False)
        if parent
        else composed
    )
    if (
        not isinstance(node, DictConfig)
        or last not in node
        or not OmegaConf.is_interpolation(node, last)
    ):
        return error
    reference = str(OmegaConf.to_container(node, resolve=False)[last])  # type: ignore[index, call-overload]
    return UserError(reference.strip("${}"), error.value, f"{error.reason} (used by {error.key})")


def translate_hydra_error(error: Exception) -> UserError:
    """A Hydra or OmegaConf error as one about a key, with the nearest key that exists."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        known = [str(key) for key in getattr(cause.object_type, "__dataclass_fields__", {})]
        last = cause.full_key.rpartition(".")[2]
        message = str(cause.msg or cause).splitlines()[0]
        if "is not a subclass of" in message:  # of a typed mapping's entries
            new = "there is no such entry; a new one goes into a file of its group (--config-dir)"
            return _TranslatedError(f"{cause.full_key}: {new}")
        if last in known or not known:
            return _TranslatedError(f"{cause.full_key}: {message}")
        near = difflib.get_close_matches(last, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return _TranslatedError(f"{cause.full_key}: there is no such key; {hint}")
    missing = error.missing_cfg_file if isinstance(error, MissingConfigException) else None
    group, _, launcher = (missing or "").rpartition("/")
    if group == "hydra/launcher" and launcher in LAUNCHER_EXTRAS:
        extra = LAUNCHER_EXTRAS[launcher]
        reason = (
            f"needs hydra-{extra}-launcher, which is not installed: pip install 'growlm[{extra}]'"
        )
        return UserError("hydra/launcher", launcher, reason)
    words = " ".join(str(error).split())
    return _TranslatedError(words.partition(" Config search path")[0])


class _TranslatedError(UserError):
    """A message of another library's, already whole."""

    def __init__(self, message: str) -> None:
        ValueError.__init__(self, message)
        self.key, self.value, self.reason = "", "", message
