"""Let a config group that the command line chooses win over a file that sets everything the choice would set.

Hydra merges an experiment's file after the groups. A run's complete `config.yaml`, read as an experiment to repeat
the run, would otherwise leave nothing of `optimizer=muon` beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from growlm.config.composing.config_layers import ConfigLayer, read_command_line
from growlm.runtime.errors import UserError

CHOICES_OF_A_RUN = {"phase_plan", "baseline"}
"""Groups that a saved run is repeated without: its config has what they chose."""


def apply_chosen_groups(
    config: DictConfig,
    overrides: Sequence[Override],
    read_files: Callable[[], list[ConfigLayer]],
    schema_name: str,
) -> None:
    """Replace the sections of chosen groups that a later file of the user's own has overwritten completely.

    Args:
        config: Composed config; changed in place.
        overrides: Overrides of the command line.
        read_files: Returns the settings of each file, in the order in which they are merged.
        schema_name: Name under which Hydra knows the schema.

    Raises:
        UserError: If a group is chosen and removed.
    """
    removed = {override.key_or_group for override in overrides if override.is_delete()}
    for override in overrides:
        if override.is_delete() or "." in override.key_or_group or override.package is not None:
            continue
        layers = read_files()
        if override.key_or_group in removed & CHOICES_OF_A_RUN:
            group, _, option = str(override.input_line).lstrip("+").partition("=")
            reason = (
                f"has no effect beside ~{group}, which removes the choice; leave out one of them"
            )
            raise UserError(group, option, reason)
        of_group = [i for i, each in enumerate(layers) if _group_of(each) == override.key_or_group]
        if not of_group or not (section := layers[of_group[-1]].package):
            continue
        chosen = {key for i in of_group for key in _section(layers[i], section)}
        kept, overwritten = layers[: of_group[-1] + 1], False
        for layer in layers[of_group[-1] + 1 :]:
            if layer.is_own and chosen and chosen <= _section(layer, section).keys():
                overwritten = True
            else:
                kept.append(layer)
        if overwritten:
            others = [each for each in overrides if each is not override]
            parts = [*kept, read_command_line(others)]
            schema = ConfigStore.instance().load(f"{schema_name}.yaml").node
            fresh = OmegaConf.select(schema, section).copy()
            config[section] = OmegaConf.merge(fresh, *(_section(part, section) for part in parts))


def _group_of(layer: ConfigLayer) -> str:
    return layer.name.rpartition("/")[0]


def _section(layer: ConfigLayer, section: str) -> dict[str, Any]:
    settings = layer.settings.get(section)
    return settings if isinstance(settings, dict) else {}
