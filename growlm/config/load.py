"""Compose Hydra configs and turn them into validated dataclasses."""

from __future__ import annotations

import copy
import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

from hydra import compose
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from growlm.config.composing.composition import (
    SCHEMA_NAME,
    complete_phases,
    explain_composition_error,
    find_unused_settings,
)
from growlm.config.composing.config_layers import parse_overrides
from growlm.config.composing.inert_settings import check_inert_settings
from growlm.config.composing.unread_files import UNREADABLE, explain_unread_file
from growlm.config.config_dir import (
    ROOT_CONFIG_NAME,
    check_config_dir,
    get_config_folder,
    initialize_hydra,
)
from growlm.config.former_overrides import translate_former_overrides
from growlm.config.operator_schema import (
    MUST_BE_ENTRY,
    ComposedConfig,
    check_grow_list,
    check_grow_lists,
    explain_unknown_key,
    with_operator_types,
    with_operators,
)
from growlm.config.own_classes import (
    GROUP_TYPES,
    OPEN_MAPPINGS,
    TARGET,
    choose_own_entries,
    collect_arguments,
    list_class_settings,
)
from growlm.config.schema import RunConfig
from growlm.config.starting_model import fill_from_checkpoint
from growlm.config.validation import check_config
from growlm.model.config import ModelConfig, get_field_type
from growlm.model.former_fields import translate_former_fields
from growlm.runtime.errors import UserError
from growlm.runtime.field_limits import check_limits

CommandT = TypeVar("CommandT")

_LIST_INDEX = re.compile(r"\[(\d+)\]")
_OVERRIDE_AT_FAULT = re.compile(r"(?:Error merging override |Could not override ')([^='\s]+)['=]")
_EVALUATION_TEXT = re.compile(r"data\.(validation|evaluation_sets\.[\w-]+)")
_FILE_AT_FAULT = re.compile(r"In '([^']+)': ")
_GROW_ENTRY = re.compile(r"(^|\.)grow\.\d+(\.\w+)?$")


def make_config_node(config: RunConfig | type[RunConfig]) -> DictConfig:
    """Return the node of a run's config, or of its schema, in which all fields can be set."""
    schema: Any = with_operator_types(RunConfig)
    node = copy.deepcopy(_make_schema_node(schema))
    if isinstance(config, RunConfig):
        node = cast(
            DictConfig, OmegaConf.merge(node, OmegaConf.to_container(OmegaConf.structured(config)))
        )
    return node


@lru_cache(maxsize=1)
def _make_schema_node(schema: type[RunConfig]) -> DictConfig:
    """Return the node of a schema; it is copied, which takes a fifth of the time of making it."""
    node: DictConfig = OmegaConf.structured(schema)
    _make_writable(node.model)
    return node


def _make_writable(node: DictConfig) -> None:
    OmegaConf.set_readonly(node, False)  # OmegaConf takes frozen dataclasses for read-only nodes
    for name in node:
        if isinstance(node[name], DictConfig):
            _make_writable(node[name])


@cache
def register_schema() -> None:
    """Register the schema with Hydra, so that wrong keys and types are reported where they are written.

    Once is enough: Hydra copies what is registered.
    """
    model = make_config_node(RunConfig).model
    _clear_model(model)
    schema = OmegaConf.structured(ComposedConfig)
    schema.model = OmegaConf.to_container(model)
    OmegaConf.set_struct(schema.phases, False)  # settings that the plan's file leaves out need no +
    for key in (
        *GROUP_TYPES,
        *OPEN_MAPPINGS,
    ):  # what is not in them is checked by `reject_unknown_keys`
        OmegaConf.set_struct(OmegaConf.select(schema, key), False)
    for group in GROUP_TYPES:
        for name in list_class_settings(group):
            schema[group][name] = MISSING
    ConfigStore.instance().store(name=SCHEMA_NAME, node=schema)


def _clear_model(node: DictConfig) -> None:
    """Mark all fields as missing: the group's files set them, or the folder of model=pretrained."""
    for name in node:
        if isinstance(node[name], DictConfig):
            _clear_model(node[name])
        elif name != "path":
            node[name] = MISSING


def compose_run_config(
    overrides: Sequence[str],
    config_dir: str | Path | None = None,
    config_name: str = ROOT_CONFIG_NAME,
) -> DictConfig:
    """Compose the config of a run from command-line overrides; values are not validated yet.

    Args:
        overrides: Arguments `key=value` and `group=option`.
        config_dir: Folder with config files of the user's own, laid out like `conf/`.
        config_name: Name of the primary config.

    Raises:
        UserError: If an override names nothing, or sets something that no phase uses.
    """
    register_schema()
    overrides = translate_overrides(overrides)
    own = None if config_dir is None else Path(config_dir).expanduser().absolute()
    if own is not None:
        check_config_dir(own)
    with initialize_hydra(own):
        try:
            composed = compose(config_name, overrides=overrides)
            complete_phases(composed, overrides, config_name)
            unused = find_unused_settings(composed, overrides, config_name)
        except (HydraException, OmegaConfBaseException, *UNREADABLE) as error:
            explained = explain_composition_error(error, overrides, config_name)
            raise explained or translate_hydra_error(error) from error
        except OSError as error:
            if error.filename is None:
                raise
            if error.errno == errno.ENAMETOOLONG:  # Hydra looks for a group or a file of that name
                raise UserError("override", Path(error.filename).name, "is too long") from error
            reason = f"cannot be read: {error.strerror}"
            raise UserError("config file", error.filename, reason) from error
    if unused:
        raise unused[0]
    return composed


def translate_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides under the present keys, with the entry `own` of each group that names a class."""
    return choose_own_entries(translate_former_overrides(overrides))


def load_config(*overrides: str, config_dir: str | Path | None = None) -> RunConfig:
    """Compose and validate the config of a run from command-line overrides.

    With `resume=RUN_DIR` it is the config that the run began with, changed by the other overrides, unless one of
    them chooses from a config group, such as `phase_plan=four_stage`.

    Args:
        *overrides: Arguments `key=value` and `group=option`.
        config_dir: Folder with config files of your own, laid out like `conf/`.

    Raises:
        UserError: If a setting is wrong.
    """
    from growlm.config.composing.resumed_config import (
        resolve_resume_config,  # it imports this module
    )

    for override in overrides:
        if not isinstance(override, str):
            reason = 'must be strings, each an argument of its own: load_config("seed=1", "data=text"), or *LIST'
            raise UserError("overrides", override, reason)
    composed = compose_run_config(overrides, config_dir)
    with trace_interpolated_keys(composed):
        config = resolve_resume_config(to_run_config(composed), overrides)
        check_config(config)
    return config


def compose_command_config(
    config_name: str, schema: type[Any], overrides: Sequence[str]
) -> DictConfig:
    """Compose the config of a command other than `growlm.train`, without validation.

    Args:
        config_name: Name of its file in `conf/`, without `.yaml`.
        schema: Dataclass of its settings.
        overrides: Arguments `key=value`.
    """
    node = OmegaConf.structured(with_operator_types(schema))
    if "data" in node:
        OmegaConf.set_struct(node.data, False)  # conditions of data.filter need no +
    ConfigStore.instance().store(name=f"{config_name}_schema", node=node)
    with initialize_hydra():
        return compose(config_name, overrides=list(overrides))


def load_command_config(
    config_name: str, schema: type[CommandT], overrides: Sequence[str]
) -> CommandT:
    """Compose and validate the config of a command; takes the arguments of `compose_command_config`.

    Raises:
        UserError: If a setting is wrong.
    """
    try:
        for override in parse_overrides(overrides):
            if override.key_or_group == "grow":
                check_grow_list("grow", override.value())
        composed = compose_command_config(config_name, schema, overrides)
        check_inert_settings(composed, parse_overrides(overrides))
        reject_unknown_keys(composed)
        config = with_operators(OmegaConf.to_object(composed), schema)
    except MissingMandatoryValue as error:
        raise UserError(_with_dots(error.full_key), "???", "must be given") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise translate_hydra_error(error) from error
    check_limits(config)
    return config


def to_run_config(composed: DictConfig) -> RunConfig:
    """Convert a composed config to dataclasses; only types and keys are checked.

    Raises:
        UserError: If a key is unknown or missing, or a value has the wrong type.
    """
    reject_unknown_keys(composed)
    try:
        node = _to_typed_node(composed)
        fill_from_checkpoint(node.model)
        return with_operators(OmegaConf.to_object(node), RunConfig)
    except MissingMandatoryValue as error:
        reason = "is not set; set it in the plan's file or on the command line"
        raise UserError(_with_dots(error.full_key), "???", reason) from error
    except OmegaConfBaseException as error:
        raise translate_hydra_error(error) from error


def _to_typed_node(composed: DictConfig) -> DictConfig:
    content: Any = OmegaConf.to_container(composed)
    content.pop("hydra", None)
    kind = OmegaConf.get_type(composed)
    if kind is not None and issubclass(kind, ComposedConfig):  # not the config.yaml of a run
        collect_arguments(content)
    if isinstance(model := content.get("model"), dict):
        content["model"] = model = translate_former_fields(model)
        for name, part in ModelConfig.part_types().items():
            if not isinstance(value := model.get(name, {}), dict):
                known = ", ".join(f"model.{name}.{each}" for each in part.__dataclass_fields__)
                raise UserError(f"model.{name}", value, f"is a part with fields; set {known}")
    check_grow_lists(content)
    if isinstance(phases := content.get("phases"), dict):
        for name, phase in phases.items():
            if isinstance(phase, dict):  # null is a choice: no checkpoint
                phase.setdefault("save_as", str(name))
    node = make_config_node(RunConfig)
    _clear_model(node.model)
    return cast(DictConfig, OmegaConf.merge(node, content))


def to_valid_run_config(composed: DictConfig) -> RunConfig:
    """Convert a composed config to dataclasses, and validate it.

    Raises:
        UserError: If a setting is wrong; names the key that was set, see `trace_interpolated_keys`.
    """
    with trace_interpolated_keys(composed):
        config = to_run_config(composed)
        check_config(config)
    return config


@contextmanager
def trace_interpolated_keys(composed: DictConfig) -> Iterator[None]:
    """Make errors name the key that the user set, if the plan's key only refers to it (`${growth.scale_factor}`).

    The config of a resumed run is its own and has no such references.
    """
    try:
        yield
    except UserError as error:
        if OmegaConf.select(composed, "resume") not in (None, "auto"):
            raise
        raise trace_interpolation(error, composed) from error


def reject_unknown_keys(node: DictConfig, prefix: str = "") -> None:
    """Reject keys that `+key=value` added outside the schema, which would have no effect.

    Raises:
        UserError: For the first such key; suggests the nearest key that exists.
    """
    schema = OmegaConf.get_type(node)
    known = list(getattr(schema, "__dataclass_fields__", {}))
    if prefix in GROUP_TYPES and node.get(TARGET) is not None:
        known = []  # the other keys are arguments of the user's own class
    for key in node:
        full = f"{prefix}.{key!s}" if prefix else str(key)
        if known and key not in known and full != "hydra":
            raise UserError(full, node[key], explain_unknown_key(schema, str(key), known))
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
    """Return the error for the key that the user set, if the key at fault only refers to it."""
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
    """Translate a Hydra or OmegaConf error to one about a key, with the nearest key that exists."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__ or cause.__context__  # Hydra's are not always raised from theirs
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        parent, _, last = cause.full_key.rpartition(".")
        known = _list_known_keys(cause.object_type, parent)
        message = str(cause.msg or cause).splitlines()[0]
        full_key = _with_dots(cause.full_key)
        if (file := _FILE_AT_FAULT.match(str(error))) is not None:
            full_key = f"{file[1]}: {full_key}"
        if (override := _OVERRIDE_AT_FAULT.match(str(error))) is not None:
            key = override[1].lstrip("+")
            # For a value that is a list or a mapping, OmegaConf names a key inside it.
            if not (full_key.startswith(key) or key.startswith(full_key)):
                full_key = key if key.endswith(f".{full_key}") else f"{key}: {full_key}"
        if "is not a subclass of" in message:
            if _GROW_ENTRY.search(full_key):
                reason = MUST_BE_ENTRY
            elif (text := _EVALUATION_TEXT.match(full_key)) is not None:
                full_key = text[0]
                reason = f"must be settings of a text, {full_key}.path=FILE; only a run takes them"
            else:  # raised for entries of a typed mapping
                reason = (
                    "there is no such entry; add a new one in a file of its group (--config-dir)"
                )
            return _TranslatedError(f"{full_key}: {reason}")
        if last in known or not known:
            return _TranslatedError(f"{full_key}: {message}")
        reason = explain_unknown_key(cause.object_type, last, known)
        return _TranslatedError(f"{full_key}: {reason}")
    if (unread := explain_unread_file(error)) is not None:
        return unread
    one_line = " ".join(str(error).split())
    return _TranslatedError(one_line.partition(" Config search path")[0])


def _with_dots(full_key: Any) -> str:
    """Return a key as overrides have it: `grow.0.widen`, where OmegaConf has `grow[0].widen`."""
    return _LIST_INDEX.sub(r".\1", str(full_key))


def _list_known_keys(schema: Any, path: str) -> list[str]:
    if path.partition(".")[0] == "model":  # a plain mapping while Hydra composes
        with suppress(KeyError):
            schema = get_field_type(RunConfig, path)
    known = [str(key) for key in getattr(schema, "__dataclass_fields__", {})]
    if not path and isinstance(schema, type) and issubclass(schema, ComposedConfig):
        groups = (each.name for each in get_config_folder().iterdir() if each.is_dir())
        known += sorted({*groups} - {*known, "hydra"})
    return known


class _TranslatedError(UserError):
    """Error with the complete message of another library."""

    def __init__(self, message: str) -> None:
        ValueError.__init__(self, message)
        self.key, self.value, self.reason = "", "", message
