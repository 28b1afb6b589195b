"""List what a config was composed from: each file's settings, and those of the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import OmegaConf

from growlm.config.config_dir import SEARCH_PATH_KEY


@dataclass(frozen=True)
class ConfigLayer:
    """Settings that one file, or the command line, adds to a composed config."""

    name: str
    """Path inside its config folder without the suffix, such as `phase_plan/mine`."""
    package: str
    """Key below which the file's settings lie; empty for the root."""
    file: Path | None
    """The file; None for the command line."""
    is_own: bool
    """Whether the user wrote it."""
    settings: dict[str, Any]
    """The settings from the root on, with interpolations as written."""


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Parse the overrides of a command line."""
    return OverridesParser.create().parse_overrides(list(overrides))


def has_own_files(overrides: Sequence[Override]) -> bool:
    """Return whether Hydra, which must be initialized, reads config files that growlm does not ship."""
    sources = GlobalHydra.instance().config_loader().get_sources()
    folders = [source for source in sources if source.scheme() == "file"]
    return len(folders) > 1 or any(o.key_or_group == SEARCH_PATH_KEY for o in overrides)


def list_config_folders(overrides: Sequence[Override]) -> list[Path]:
    """Return the folders in which Hydra, which must be initialized, looks for config files, in its order."""
    sources = GlobalHydra.instance().config_loader().get_sources()
    folders = [Path(source.path) for source in sources if source.scheme() == "file"]
    for override in overrides:
        if override.key_or_group == SEARCH_PATH_KEY and isinstance(override.value(), list):
            folders += [Path(str(each).removeprefix("file://")) for each in override.value()]  # type: ignore[union-attr]
    return folders


def find_file(name: str, overrides: Sequence[Override]) -> Path | None:
    """Return the config file of that name that Hydra, which must be initialized, reads; None if there is none."""
    files = [Path(os.path.normpath(folder / name)) for folder in list_config_folders(overrides)]
    return next((file for file in files if file.is_file()), None)


def read_command_line(overrides: Sequence[Override]) -> ConfigLayer:
    """Return the settings that overrides set, without those that they delete."""
    settings: dict[str, Any] = {}
    for override in overrides:
        if not override.is_delete() and not override.is_sweep_override():
            _merge(settings, _nest(override.key_or_group, override.value()))
    return ConfigLayer("command line", "", None, True, settings)


def read_file_layers(
    config_name: str | None, overrides: Sequence[Override], shipped: Path
) -> list[ConfigLayer]:
    """Return the settings of each file that Hydra composes, in the order in which it merges them.

    Hydra must be initialized.

    Args:
        config_name: Name of the primary config.
        overrides: Overrides of the command line, including Hydra's own.
        shipped: Folder of growlm's own config files.
    """
    loader = GlobalHydra.instance().config_loader()
    lines = [str(override.input_line) for override in overrides]
    defaults = loader.compute_defaults_list(config_name, lines, RunMode.RUN).defaults
    layers = []
    for default in defaults:
        name = f"{default.config_path}.yaml"
        if (file := find_file(name, overrides)) is None:
            continue  # one of Hydra's own, or a schema
        content = OmegaConf.to_container(OmegaConf.load(file))
        if isinstance(content, dict):
            content.pop("defaults", None)
            package = default.package or ""
            is_own = not file.is_relative_to(shipped)
            settings = _nest(package, content) if package else content
            layers.append(ConfigLayer(str(default.config_path), package, file, is_own, settings))  # type: ignore[arg-type]
    return layers


def _nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    nested: dict[str, Any] = value
    return nested


def _merge(target: dict[str, Any], source: dict[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value
