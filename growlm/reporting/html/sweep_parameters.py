"""Find the settings in which the compared runs differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from growlm.reporting.reading.run_files import Run

EXCLUDED_KEYS = ("run_dir", "resume", "logger", "reuse", "baseline.of")
"""Keys that do not affect the results of a run."""
BASELINE_KIND_KEY = "baseline.kind"
MAX_PARAMETERS = 8
"""Largest number of differing settings shown for runs that are not a sweep."""


def find_sweep_parameters(runs: Sequence[Run]) -> list[str]:
    """Set the sweep parameters of all runs that have none, and return all keys in order.

    Args:
        runs: Runs whose `sweep_parameters` are set in place if empty.
    """
    if not all(run.sweep_parameters for run in runs):
        configs = [flatten_settings(run.config) for run in runs]
        keys = _distinguishing_keys(configs)
        for run, config in zip(runs, configs, strict=True):
            run.sweep_parameters = run.sweep_parameters or {
                key: _format_value(config.get(key)) for key in keys
            }
    return list(dict.fromkeys(key for run in runs for key in run.sweep_parameters))


def flatten_settings(config: Any, path: str = "") -> dict[str, Any]:
    """Flatten nested settings, without excluded keys: `{"a": {"b": [1]}}` -> `{"a.b.0": 1}`."""
    if isinstance(config, dict):
        items = [(str(key), value) for key, value in config.items()]
    elif isinstance(config, list):
        items = [(str(index), value) for index, value in enumerate(config)]
    else:
        return {path: config}
    flat: dict[str, Any] = {}
    for key, value in items:
        full = f"{path}.{key}" if path else key
        if full not in EXCLUDED_KEYS:
            flat |= flatten_settings(value, full)
    return flat


def _distinguishing_keys(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the keys that differ, without those whose values follow from another key."""
    keys = dict.fromkeys(key for config in configs for key in config)
    values = {key: tuple(_format_value(config.get(key)) for config in configs) for key in keys}
    # A phase's field often repeats a setting at the root, which is the better name.
    ordered = sorted(keys, key=lambda key: (key != BASELINE_KIND_KEY, key.startswith("phases.")))
    kinds = values.get(BASELINE_KIND_KEY, ())
    key_by_values: dict[tuple[str, ...], str] = {}
    for key in ordered:
        if len(set(values[key])) < 2 or (
            key != BASELINE_KIND_KEY and _is_determined_by_kind(values[key], kinds)
        ):
            continue
        key_by_values.setdefault(values[key], key)
    return list(key_by_values.values())[:MAX_PARAMETERS]


def _is_determined_by_kind(values: Sequence[str], kinds: Sequence[str]) -> bool:
    """Return whether the kind of baseline determines the value."""
    return len(set(kinds)) > 1 and len(set(zip(kinds, values, strict=True))) == len(set(kinds))


def _format_value(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def shorten_keys(parameter_keys: Sequence[str]) -> dict[str, str]:
    """Return the last part of each key; the whole key if two end alike or it is a baseline setting."""
    last = [key.rpartition(".")[2] for key in parameter_keys]
    return {
        key: name if last.count(name) == 1 and not key.startswith("baseline.") else key
        for key, name in zip(parameter_keys, last, strict=True)
    }
