"""What differs between runs that are shown side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from growlm.reporting.reading.run_files import Run

EXCLUDED_KEYS = ("run_dir", "resume", "logger", "reuse", "baseline.of")
"""Keys that change nothing in the run's figures."""
BASELINE_KIND_KEY = "baseline.kind"
MAX_PARAMETERS = 8
"""Dials that are shown of runs that are no sweep."""


def find_sweep_parameters(runs: Sequence[Run]) -> list[str]:
    """Give every run its dials, where a sweep has not, and name them all in order.

    Args:
        runs: Their `dials` are filled in.
    """
    if not all(run.sweep_parameters for run in runs):
        configs = [flatten_settings(run.config) for run in runs]
        told = _distinguishing_keys(configs)
        for run, config in zip(runs, configs, strict=True):
            run.sweep_parameters = run.sweep_parameters or {
                key: _format_value(config.get(key)) for key in told
            }
    return list(dict.fromkeys(key for run in runs for key in run.sweep_parameters))


def flatten_settings(config: Any, path: str = "") -> dict[str, Any]:
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
        if full not in EXCLUDED_KEYS:
            flat |= flatten_settings(value, full)
    return flat


def _distinguishing_keys(configs: Sequence[dict[str, Any]]) -> list[str]:
    """The keys that differ, without those that only repeat what others say."""
    keys = dict.fromkeys(key for config in configs for key in config)
    values = {key: tuple(_format_value(config.get(key)) for config in configs) for key in keys}
    # A phase's field often is a dial of the root, which is the better name.
    ordered = sorted(keys, key=lambda key: (key != BASELINE_KIND_KEY, key.startswith("phases.")))
    kinds = values.get(BASELINE_KIND_KEY, ())
    told: dict[tuple[str, ...], str] = {}
    for key in ordered:
        if len(set(values[key])) < 2 or (
            key != BASELINE_KIND_KEY and _is_determined_by_kind(values[key], kinds)
        ):
            continue
        told.setdefault(values[key], key)
    return list(told.values())[:MAX_PARAMETERS]


def _is_determined_by_kind(values: Sequence[str], kinds: Sequence[str]) -> bool:
    """Whether the kind of baseline, where it differs, decides the value."""
    return len(set(kinds)) > 1 and len(set(zip(kinds, values, strict=True))) == len(set(kinds))


def _format_value(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def shorten_keys(parameter_keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key; the whole key where two end alike, and of baselines."""
    last = [dial.rpartition(".")[2] for dial in parameter_keys]
    return {
        dial: name if last.count(name) == 1 and not dial.startswith("baseline.") else dial
        for dial, name in zip(parameter_keys, last, strict=True)
    }
