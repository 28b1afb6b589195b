"""Find settings that the user gives although another choice of the config leaves nothing that reads them.

`data.path=my.txt` alone, with `data=embedded`, would train on the embedded stories. A setting of one choice that
is given with another is refused; what files of growlm set is a default and asks for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from growlm.config.composing.config_layers import ConfigLayer
from growlm.config.flatten import flatten_config
from growlm.config.own_classes import KEPT_SETTINGS
from growlm.config.schema import OWN, SETTINGS_OF_SOURCES, RunConfig
from growlm.runtime.errors import UserError

READ_BY: dict[str, dict[str, tuple[str, ...]]] = {
    "data.source": {
        "path": ("text",),
        "sample_by": ("text",),
        "column": ("text", "huggingface"),
        **SETTINGS_OF_SOURCES,
        "documents": ("embedded",),
        "name": ("huggingface",),
        "config": ("huggingface",),
        "split": ("huggingface",),
        "revision": ("huggingface",),
    },
    "schedule.name": {"decay_fraction": ("wsd",), "final_fraction": ("wsd", "cosine")},
    "logger.name": {
        "project": ("wandb", "trackio"),
        "entity": ("wandb",),
        "group": ("wandb", "trackio"),
        "tags": ("wandb",),
        "mode": ("wandb",),
    },
    "model.rope.scaling.kind": {
        "factor": ("linear", "llama3", "yarn", "longrope"),
        "original_max_seq_len": ("llama3", "yarn", "longrope"),
        "low_freq_factor": ("llama3",),
        "high_freq_factor": ("llama3",),
        "beta_fast": ("yarn",),
        "beta_slow": ("yarn",),
        "truncate": ("yarn",),
        "attention_factor": ("yarn", "longrope"),
        "short_factors": ("longrope",),
        "long_factors": ("longrope",),
    },
}
"""By the key that chooses: the settings beside it that only some choices read. `validation.py` has those of
`optimizer.name`, `tokenizer.name` and `data.sources`, which are wrong wherever they come from."""
_GROUPS = tuple(KEPT_SETTINGS)


@dataclass(frozen=True)
class InertSetting:
    """A setting that nothing reads, or a whole part of a config.

    Args:
        key: Its key; it covers the keys below it.
        decided_by: Key of the choice that leaves it unread.
        reason: What is chosen, and what to do.
    """

    key: str
    decided_by: str
    reason: str


def find_inert_settings(
    config: DictConfig, overrides: Sequence[Override], files: Sequence[ConfigLayer] = ()
) -> list[UserError]:
    """Return an error for each setting that was asked for and that nothing in this config reads.

    Args:
        config: Composed config of a run or a command.
        overrides: Overrides of the command line.
        files: Settings of each file. A file of the user's own asks for what differs from the default; it is not at
            fault where the command line makes the choice that leaves its setting unread.
    """
    inert = list(_list_inert_settings(config))
    chosen = {override.key_or_group for override in overrides}
    errors = []
    for key, value in _iter_given(overrides):
        errors += [
            UserError(key, value, each.reason) for each in inert if _covers(each.key, key, value)
        ]
    for layer in files:
        if not layer.is_own or set(RunConfig.__dataclass_fields__) <= set(layer.settings):
            continue  # a run's saved config holds all settings
        defaults = _flatten_defaults()
        for key, value in flatten_config(layer.settings):
            if key in defaults and defaults[key] == value:
                continue
            errors += [
                UserError(key, value, f"{each.reason} (set in {layer.file})")
                for each in inert
                if _covers(each.key, key, value) and not _is_decided(each.decided_by, chosen)
            ]
    return errors


def check_inert_settings(config: DictConfig, overrides: Sequence[Override]) -> None:
    """Raise the first error of `find_inert_settings`, for a config without files of the user's own."""
    for error in find_inert_settings(config, overrides):
        raise error


@cache
def _flatten_defaults() -> dict[str, Any]:
    return dict(flatten_config(OmegaConf.to_container(OmegaConf.structured(RunConfig))))


def _iter_given(overrides: Sequence[Override]) -> Iterator[tuple[str, Any]]:
    for override in overrides:
        if not override.is_delete() and not override.is_sweep_override():
            yield from flatten_config(override.value(), override.key_or_group)


def _covers(inert: str, key: str, value: Any) -> bool:
    """Return whether a given setting is an inert one, or lies below it; null asks for nothing."""
    return value is not None and (key == inert or key.startswith(f"{inert}."))


def _is_decided(decided_by: str, chosen: set[str]) -> bool:
    return any(decided_by == key or decided_by.startswith(f"{key}.") for key in chosen)


def _list_inert_settings(config: DictConfig) -> Iterator[InertSetting]:
    for decider, readers in READ_BY.items():
        group = decider.partition(".")[0]
        if _get(config, f"{group}._target_") is None:
            yield from _list_unread_by_choice(config, decider, readers)
    for name in _get(config, "data.sources") or ():
        decider = f"data.sources.{name}.source"
        yield from _list_unread_by_choice(config, decider, READ_BY["data.source"], "embedded")
    if OmegaConf.select(config, "phases") is not None:
        yield from _list_inert_model_settings(config)
        yield from _list_inert_run_settings(config)
    else:
        yield from _list_inert_evaluation_settings(config)


def _list_unread_by_choice(
    config: DictConfig, decider: str, readers: dict[str, tuple[str, ...]], default: Any = None
) -> Iterator[InertSetting]:
    choice = _get(config, decider) or default
    if choice is None or choice == OWN:
        return
    parent = decider.rpartition(".")[0]
    for setting, choices in readers.items():
        if choice in choices:
            continue
        key = parent if parent in _GROUPS else decider
        instead = f"{key}={' or '.join(choices)}"
        reason = f"{key}={choice} does not read this; use {instead}, or leave it out"
        yield InertSetting(f"{parent}.{setting}", decider, reason)


def _list_inert_model_settings(config: DictConfig) -> Iterator[InertSetting]:
    if _get(config, "model.path") is not None:
        return  # `fill_from_checkpoint` refuses what differs from the folder
    if _get(config, "model.attention.qk_norm") == "none":
        reason = "model.attention.qk_norm=none has no such norms; set that too, or leave this out"
        yield InertSetting("model.attention.qk_norm_eps", "model.attention.qk_norm", reason)
    if _get(config, "model.norm.kind") == "rmsnorm" and _get(config, "model.norm.bias") is True:
        reason = "model.norm.kind=rmsnorm has no biases; leave this out"
        yield InertSetting("model.norm.bias", "model.norm.kind", reason)
    if _get(config, "model.embedding.positions") == "learned":
        reason = "model.embedding.positions=learned rotates nothing; leave this out"
        yield InertSetting("model.rope", "model.embedding.positions", reason)
    else:
        reason = (
            "only model.embedding.positions=learned has a table; set that too, or leave this out"
        )
        yield InertSetting("model.embedding.position_offset", "model.embedding.positions", reason)
    if not _get(config, "model.num_experts"):
        reason = (
            "the first model is dense; a phase that grows it into experts says how many of them a token uses "
            "(phases.NAME.grow.0.upcycle.top_k), or set model.num_experts"
        )
        yield InertSetting("model.top_k", "model.num_experts", reason)
        if not _may_have_mixtures(config):
            reason = "no phase of this plan has a mixture of experts, and only those have routers"
            yield InertSetting("model.routing", "phases", reason)


def _may_have_mixtures(config: DictConfig) -> bool:
    """Return whether a phase grows the model by anything but width and depth."""
    return any(
        not isinstance(entry, DictConfig)
        or {name for name in entry if entry[name] is not None} - {"widen", "deepen"}
        for phase in _iter_phases(config)
        for entry in phase.get("grow") or ()
    )


def _list_inert_run_settings(config: DictConfig) -> Iterator[InertSetting]:
    modes = {phase.get("optimizer_state") for phase in _iter_phases(config)}
    if "asymmetric" not in modes and _get(config, "optimizer.name") != OWN:
        reason = "no phase has optimizer_state=asymmetric, which alone reads this"
        for name in ("rewarm_peak", "rewarm_steps"):
            yield InertSetting(f"optimizer.{name}", "phases", reason)
    if _get(config, "baseline.kind") == "none":
        reason = "needs a baseline: baseline=scratch or baseline=continue"
        yield InertSetting("baseline.equal", "baseline.kind", reason)
    yield InertSetting("baseline.of", "baseline.of", "is set by growlm; leave it out")
    if _get(config, "reuse.phases") == "never":
        for name in ("folder", "max_gb"):
            reason = "reuse.phases=never uses no cache; leave this out"
            yield InertSetting(f"reuse.{name}", "reuse.phases", reason)
    if _get(config, "callbacks.sample_tokens") == 0:
        for name in ("sample_prompt", "sample_temperature"):
            reason = "callbacks.sample_tokens=0 takes no sample; leave this out"
            yield InertSetting(f"callbacks.{name}", "callbacks.sample_tokens", reason)
    yield from _list_inert_cluster_settings(config)
    length, probe = _get(config, "sequence_length"), _get(config, "verification.probe_length")
    if isinstance(length, int) and isinstance(probe, int) and probe > length:
        reason = f"must be at most sequence_length={length}"
        yield InertSetting("verification.probe_length", "sequence_length", reason)


def _list_inert_cluster_settings(config: DictConfig) -> Iterator[InertSetting]:
    if _get(config, "cluster.peak_tflops") is None:
        reason = "is a fraction of cluster.peak_tflops; set that too, or leave this out"
        yield InertSetting("cluster.mfu", "cluster.peak_tflops", reason)
    if _get(config, "cluster.memory_gb") is not None and _get(config, "trainer.memory_gb"):
        reason = "trainer.memory_gb takes precedence; leave one of them out"
        yield InertSetting("cluster.memory_gb", "trainer.memory_gb", reason)


def _list_inert_evaluation_settings(config: DictConfig) -> Iterator[InertSetting]:
    text, split = _get(config, "data.validation"), _get(config, "split")
    if split == "all":
        reason = "split=all scores every document; use split=validation, or leave this out"
        yield InertSetting("data.validation_every", "split", reason)
        reason = "split=all scores the training data; use split=validation to score this text, or leave it out"
        yield InertSetting("data.validation", "split", reason)
    elif isinstance(text, DictConfig) and any(text.get(name) not in (None, {}) for name in text):
        reason = "nothing is held out where data.validation names a text; leave out one of the two"
        yield InertSetting("data.validation_every", "data.validation", reason)


def _iter_phases(config: DictConfig) -> Iterator[DictConfig]:
    phases = _get(config, "phases")
    for name in phases if isinstance(phases, DictConfig) else ():
        if isinstance(phase := phases[name], DictConfig):
            yield phase


def _get(config: DictConfig, key: str) -> Any:
    """Return a setting of a composed config; None if it is missing, or refers to nothing."""
    return OmegaConf.select(config, key, throw_on_missing=False, throw_on_resolution_failure=False)
