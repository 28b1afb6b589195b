"""Find the run that `resume=` refers to, and check that it can be resumed with these settings."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from growlm.config.flatten import flatten_config
from growlm.config.literal import escape_prompt_interpolations
from growlm.config.load import (
    get_config_folder,
    make_config_node,
    to_run_config,
    to_valid_run_config,
    translate_overrides,
)
from growlm.config.own_classes import (
    GROUP_TYPES,
    TARGET,
    find_targets,
    get_entries,
    locate_key,
    spell_out_own_entries,
)
from growlm.config.schema import OWN, RunConfig
from growlm.config.trusted_targets import check_targets_of_file
from growlm.runtime.device import has_native_bf16, resolve_accelerator
from growlm.runtime.errors import UserError
from growlm.runtime.escaping import summarize_error
from growlm.storage.input_files import read_yaml
from growlm.training.run_folder import (
    CONFIG_FILE,
    RUN_RECORD_FILE,
    SUMMARY_FILE,
    RunFingerprint,
    RunFolder,
    lock_run,
    read_run_record,
)

AUTO = "auto"
SETTINGS_CHANGEABLE_ON_RESUME = (
    "callbacks.sample_",
    "checkpoint.",
    "cluster.",
    "data.cache",
    "data.path",  # the text itself is compared
    "model.path",  # the weights themselves are compared
    "tokenizer.path",  # the tokens themselves are compared
    "logger.",
    "resume",
    "reuse.",
    "run_dir",
    "trainer.accelerator",  # see `check_fingerprint`
    "trainer.activation_checkpointing",  # recomputes the same numbers
    "trainer.devices",  # device count and strategy only change the order of sums
    "trainer.keep_freed_memory",
    "trainer.max_time",
    "trainer.memory_gb",
    "trainer.on_nonfinite",
    "trainer.precision",  # the resolved precision is compared
    "trainer.strategy",
    "trainer.timeout_minutes",
    "trust",
)
"""Prefixes of settings that may differ in a resumed run. They change no weight and no history row, except by
rounding if the devices differ."""
DATA_SETTING_BY_SOURCE = {
    "embedded": "data.source",
    "text": "data.path",
    "huggingface": "data.name",
    "mixture": "data.sources",
    OWN: "data._target_",
}
"""The setting that selects the documents, by data source."""


def resolve_resume_config(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return the config that `resume=RUN_DIR` requests: the run's saved settings plus the given overrides.

    Args:
        config: Config composed by Hydra.
        overrides: Overrides from the command line. If one chooses a config group, such as
            `phase_plan=four_stage`, the composed config is returned unchanged.

    Raises:
        UserError: If the run does not exist, or its config names a class that the command does not trust.
    """
    if config.resume in (None, AUTO):
        return config
    parser = OverridesParser.create()
    parsed = parser.parse_overrides(spell_out_own_entries(translate_overrides(overrides)))
    groups = {path.name for path in get_config_folder().iterdir() if path.is_dir()}
    if any(o.key_or_group in groups or o.type is OverrideType.DEL for o in parsed):
        return config
    path = Path(config.resume)
    loaded = load_saved_config(path)
    saved = make_config_node(escape_prompt_interpolations(loaded))
    entries = get_entries(loaded) | {
        group: OWN
        for group in GROUP_TYPES
        if any(o.key_or_group == f"{group}.{TARGET}" for o in parsed)
    }
    named = set()
    for override in parsed:
        if not override.key_or_group.startswith("hydra."):
            key = locate_key(override.key_or_group, entries)
            OmegaConf.update(saved, key, override.value(), force_add=False)
            named |= {target for target, _ in find_targets(override.value(), key)} | {key}
    resolved = replace(to_run_config(saved), resume=config.resume)
    from_file = [target for target in find_targets(asdict(resolved)) if target[0] not in named]
    check_targets_of_file(from_file, resolved.trust)
    return resolved


def find_run_to_resume(config: RunConfig) -> Path | None:
    """Return the folder of the run to resume; None for a new run.

    Raises:
        UserError: If the run began with other settings.
    """
    if config.resume is None:
        return None
    if config.resume == AUTO:
        return find_newest_unfinished_run(config)
    path = Path(config.resume).expanduser().absolute()
    if changed := "; ".join(diff_configs(load_saved_config(path), config)):
        reason = (
            f"the run began with other settings ({changed}); "
            "remove these overrides, or start a new run"
        )
        raise UserError("resume", config.resume, reason)
    return path


def restore_accelerator(config: RunConfig) -> RunConfig:
    """Resolve `trainer.accelerator=auto` to the accelerator that the resumed run began on, if it is available.

    Raises:
        UserError: If the run does not exist.
    """
    if config.resume in (None, AUTO) or config.trainer.accelerator != AUTO:
        return config
    saved = str(read_run_record(Path(config.resume).expanduser().absolute())["accelerator"])
    if saved == "gpu" and resolve_accelerator(AUTO, "trainer.accelerator") != "gpu":
        return config
    return replace(config, trainer=replace(config.trainer, accelerator=saved))


def restore_precision(config: RunConfig, saved: RunFingerprint) -> RunConfig:
    """Resolve `trainer.precision=auto` to the precision that the run began with."""
    if config.trainer.precision != AUTO:
        return config
    return replace(config, trainer=replace(config.trainer, precision=saved.precision))


def check_fingerprint(config: RunConfig, folder: RunFolder, current: RunFingerprint) -> None:
    """Check that data, weights, precision and accelerator are those that a run began with.

    Raises:
        UserError: If one of them has changed.
    """
    saved = folder.fingerprint
    if current.data != saved.data:
        data = config.data
        how = (
            " (streamed files are compared by name, size and modification time, and by the versions of the "
            "libraries that read them)"
        )
        reason = f"the text has changed since the run began{how if data.streaming else ''}"
        raise UserError(DATA_SETTING_BY_SOURCE[data.source], data.display_name, reason)
    if current.weights != saved.weights:
        reason = "the weights have changed since the run began"
        raise UserError("model.path", config.model.path, reason)
    if current.precision != saved.precision:
        reason = f"the run began with {saved.precision} and can only resume with it; remove this override"
        raise UserError("trainer.precision", current.precision, reason)
    if current.accelerator != saved.accelerator and config.trainer.accelerator == AUTO:
        reason = (
            f"the run began on a {saved.accelerator}; to resume without one, use "
            f"trainer.accelerator={current.accelerator}: it will be slower, and equal to the "
            "uninterrupted run up to rounding, not bit for bit"
        )
        raise UserError("resume", folder.path, reason)


def describe_processor_change(saved: RunFingerprint, current: RunFingerprint) -> str | None:
    """Return a note if the run began on another kind of processor; None if not, or if that is unknown."""
    if saved.processor in (None, current.processor):
        return None
    return (
        f"This run began on another kind of processor ({saved.processor}; here: {current.processor}). It resumes "
        "with the same data and settings, and will equal the uninterrupted run up to rounding, not bit for bit."
    )


def describe_precision_cost(saved: RunFingerprint, current: RunFingerprint) -> str | None:
    """Return a note if the run's precision is slow on this processor, which has to emulate it; else None."""
    if saved.precision != "bf16-mixed" or has_native_bf16(current.accelerator):
        return None
    return (
        "The run resumes with trainer.precision=bf16-mixed, as it began. This processor has no bf16 matrix "
        "instructions and emulates them: with AVX512 as fast as fp32, without it tens of times slower."
    )


def describe_possible_file_change(saved: RunFingerprint, current: RunFingerprint) -> str | None:
    """Return a warning if streamed files may have changed despite the same sizes and times; else None."""
    before, after = saved.newest_inode_change, current.newest_inode_change
    if before is None or after is None or after <= before:
        return None
    return (
        "warning: since the run began, a streamed file was moved, copied, given another mode, or edited with "
        "its old modification time restored. Names, sizes and times are unchanged; if the text is not, start "
        "a new run."
    )


def load_saved_config(path: Path) -> RunConfig:
    """Load the config that a run began with.

    Raises:
        UserError: If it is missing or damaged.
    """
    read_run_record(path)
    _, text = read_yaml(path / CONFIG_FILE, "resume", path, dict[str, Any])
    try:  # parse again with OmegaConf, which reads 1e-3 as a number
        saved = to_valid_run_config(cast(DictConfig, OmegaConf.create(text)))
        return replace(saved, trust=[])  # a file cannot say whom to trust
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        detail = error.args[0] if isinstance(error, OmegaConfBaseException) else error
        reason = f"is not a valid run config: {summarize_error(Exception(detail))}"
        raise UserError("resume", path / CONFIG_FILE, reason) from error


def find_newest_unfinished_run(config: RunConfig) -> Path | None:
    """Return the newest unfinished run with these settings, for `resume=auto`; None if there is none."""
    if config.run_dir is not None:
        run_dir = Path(config.run_dir).expanduser().absolute()
        candidates = [run_dir, *run_dir.parent.glob(f"{run_dir.name}_*")]
    else:
        candidates = list(Path("outputs").glob("*/*"))
    runs = [path for path in candidates if (path / "resume" / RUN_RECORD_FILE).is_file()]
    for path in sorted(
        runs, key=lambda p: (p / "resume" / RUN_RECORD_FILE).stat().st_mtime, reverse=True
    ):
        if (path / SUMMARY_FILE).exists():
            continue
        with contextlib.suppress(UserError):
            precisions = (AUTO, read_run_record(path)["precision"])
            if config.trainer.precision in precisions and not diff_configs(
                load_saved_config(path), config
            ):
                lock_run(path).close()
                return path
    return None


def is_source_path(key: str) -> bool:
    """Return whether a key is the path of a mixture's source, which may change as long as the text does not."""
    return key.startswith("data.sources.") and key.endswith(".path")


def diff_configs(old: RunConfig, new: RunConfig) -> list[str]:
    """Return the settings that differ and may not, as `key=old -> new`."""
    before, after = dict(flatten_config(asdict(old))), dict(flatten_config(asdict(new)))
    keys = [
        key
        for key in before | after
        if not key.startswith(SETTINGS_CHANGEABLE_ON_RESUME) and not is_source_path(key)
    ]
    return [
        f"{key}={before.get(key)} -> {after.get(key)}"
        for key in keys
        if before.get(key) != after.get(key)
    ]
