"""Clear what a file of the user's own sets for one choice where the command line makes another.

`data=embedded` for a plan whose file reads a table leaves that file's `data.delimiter` without a reader. Most such
settings have no effect; those that validation refuses wherever they come from are set back here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from growlm.config.composing.config_layers import ConfigLayer, read_command_line
from growlm.config.flatten import flatten_config
from growlm.config.schema import OPTIMIZER_SETTINGS, OWN, SETTINGS_OF_SOURCES

_UNMIXED = ("embedded", "text", "huggingface")
_READ_BY: dict[str, dict[str, tuple[str, ...]]] = {
    "data.source": {
        **SETTINGS_OF_SOURCES,
        "sources": ("mixture",),
        "min_characters": _UNMIXED,
        "max_characters": _UNMIXED,
        "truncate": _UNMIXED,
    },
    "tokenizer.name": {"path": ("huggingface",), "eos_token": ("huggingface",)},
    "optimizer.name": {
        key: tuple(name for name, keys in OPTIMIZER_SETTINGS.items() if key in keys)
        for key in dict.fromkeys(key for keys in OPTIMIZER_SETTINGS.values() for key in keys)
    },
}
"""By the key that chooses: the settings beside it that `validation.py` refuses with any other choice."""
_UNSET = {"filter": {}, "sources": {}, "min_characters": 0, "truncate": False}
"""Values of settings that are not null where nothing is set."""


def clear_other_choices(
    config: DictConfig, overrides: Sequence[Override], read_files: Callable[[], list[ConfigLayer]]
) -> None:
    """Clear the settings of files that the choices on the command line leave unread.

    What the command line sets itself stays, and so does what the file of the chosen entry sets: these are refused.

    Args:
        config: Composed config; changed in place.
        overrides: Overrides of the command line.
        read_files: Returns the settings of each file, in the order in which they are merged.
    """
    given = [key for key, _ in flatten_config(read_command_line(overrides).settings)]
    chosen = {override.key_or_group: override.value() for override in overrides}
    for decider, settings in _READ_BY.items():
        group = decider.partition(".")[0]
        choice = _get(config, decider)
        if choice in (None, OWN) or not {group, decider} & {*chosen}:
            continue
        for name, readers in settings.items():
            key = f"{group}.{name}"
            if choice in readers or _get(config, key) in (None, _UNSET.get(name)):
                continue
            if any(each == key or each.startswith(f"{key}.") for each in given):
                continue
            entry = f"{group}/{chosen.get(group)}"
            if not _sets(entry, group, name, read_files()):
                OmegaConf.update(config, key, _UNSET.get(name), merge=False)


def _sets(entry: str, group: str, name: str, layers: Sequence[ConfigLayer]) -> bool:
    """Return whether the file with this name sets something in its group."""
    return any(
        layer.name == entry and (layer.settings.get(group) or {}).get(name) for layer in layers
    )


def _get(config: DictConfig, key: str) -> object:
    return OmegaConf.select(config, key, throw_on_missing=False, throw_on_resolution_failure=False)
