"""What differs between runs that are shown side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from growlm.reporting.html.run_files import Run

LEFT_OUT = ("run_dir", "resume", "logger", "baseline.of")
"""Keys that change nothing in the run's figures."""
MOST = 8
"""Dials that are shown of runs that are no sweep."""


def find_dials(runs: Sequence[Run]) -> list[str]:
    """Give every run its dials, where a sweep has not, and name them all in order.

    Args:
        runs: Their `dials` are filled in.
    """
    if not all(run.dials for run in runs):
        configs = [flatten(run.config) for run in runs]
        keys = list(dict.fromkeys(key for config in configs for key in config))
        differing = [k for k in keys if len({_shown(c.get(k)) for c in configs}) > 1]
        for run, config in zip(runs, configs, strict=True):
            if not run.dials:
                run.dials = {key: _shown(config.get(key)) for key in _telling(differing, configs)}
    return list(dict.fromkeys(key for run in runs for key in run.dials))


def flatten(config: Any, path: str = "") -> dict[str, Any]:
    """`{"a": {"b": [1]}}` -> `{"a.b.0": 1}`, without the keys that are left out."""
    if isinstance(config, dict):
        items = [(str(key), value) for key, value in config.items()]
    elif isinstance(config, list):
        items = [(str(index), value) for index, value in enumerate(config)]
    else:
        return {path: config}
    flat: dict[str, Any] = {}
    for key, value in items:
        full = f"{path}.{key}" if path else key
        if full not in LEFT_OUT:
            flat |= flatten(value, full)
    return flat


def _telling(keys: list[str], configs: Sequence[dict[str, Any]]) -> list[str]:
    """Keys that split the runs in the same way say one thing: the first in the config tells it."""
    splits: dict[tuple[int, ...], str] = {}
    # The plan's name differs too where the kind of baseline does, and says less.
    ranks = {key: (not key.startswith("baseline."), key.startswith("phases.")) for key in keys}
    for key in sorted(keys, key=lambda key: (*ranks[key], keys.index(key))):
        values = [_shown(config.get(key)) for config in configs]
        splits.setdefault(tuple(values.index(value) for value in values), key)
    return sorted(splits.values(), key=keys.index)[:MOST]


def _shown(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def short_names(dials: Sequence[str]) -> dict[str, str]:
    """The last part of each key; the whole key where two end alike, and of baselines."""
    last = [dial.rpartition(".")[2] for dial in dials]
    return {
        dial: name if last.count(name) == 1 and not dial.startswith("baseline.") else dial
        for dial, name in zip(dials, last, strict=True)
    }
