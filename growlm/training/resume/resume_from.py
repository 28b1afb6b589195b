"""Find the run that `resume=` refers to, and check that it can be resumed with these settings."""

from __future__ import annotations

import contextlib
import glob
from dataclasses import asdict, replace
from pathlib import Path

from growlm.checkpoint.run_record import RUN_RECORD_FILE, SUMMARY_FILE, read_run_record
from growlm.config.composing.extended_lengths import LENGTH_PATTERN
from growlm.config.composing.resumed_config import AUTO, load_saved_config
from growlm.config.flatten import flatten_config
from growlm.config.schema import OWN, RunConfig
from growlm.runtime.device import has_native_bf16, resolve_accelerator
from growlm.runtime.errors import UserError
from growlm.training.run_folder import (
    RunFingerprint,
    RunFolder,
    lock_run,
)

SETTINGS_CHANGEABLE_ON_RESUME = (
    "callbacks.sample_",
    "checkpoint.",
    "cluster.",
    "data.cache",
    "data.max_unknown_fraction",
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
MOST_CHANGES = 5
"""Number of changed settings that a message lists."""
DATA_SETTING_BY_SOURCE = {
    "embedded": "data.source",
    "text": "data.path",
    "huggingface": "data.name",
    "mixture": "data.sources",
    OWN: "data._target_",
}
"""The setting that selects the documents, by data source."""


class OtherSettingsError(UserError):
    """Error raised when a run to resume began with other settings."""


def find_run_to_resume(config: RunConfig) -> Path | None:
    """Return the folder of the run to resume; None for a new run.

    Raises:
        OtherSettingsError: If the run began with other settings.
    """
    if config.resume is None:
        return None
    if config.resume == AUTO:
        return find_newest_unfinished_run(config)
    path = Path(config.resume).expanduser().absolute()
    changes = [
        change
        for change in diff_configs(load_saved_config(path), config)
        if not LENGTH_PATTERN.match(change)  # see `run_extension.py`
    ]
    if changed := "; ".join(changes[:MOST_CHANGES]):
        if len(changes) > MOST_CHANGES:
            changed += f"; and {len(changes) - MOST_CHANGES} more"
        reason = (
            f"the run began with other settings ({changed}); "
            "remove these overrides, or start a new run"
        )
        raise OtherSettingsError("resume", config.resume, reason)
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
    before, now = saved.evaluation or {}, current.evaluation or {}
    for key, text in config.data.evaluation_texts.items():
        if before.get(key) != now.get(key):
            source = text.resolve(config.data, key)
            name = "path" if source.source == "text" else "name"
            reason = "the text to evaluate on has changed since the run began"
            raise UserError(f"{key}.{name}", getattr(source, name), reason)
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


def find_newest_unfinished_run(config: RunConfig) -> Path | None:
    """Return the newest unfinished run with these settings, for `resume=auto`; None if there is none."""
    if config.run_dir is not None:
        run_dir = Path(config.run_dir).expanduser().absolute()
        candidates = [run_dir, *run_dir.parent.glob(f"{glob.escape(run_dir.name)}_*")]
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
    """Return whether a key is the path of a further text, which may change as long as the text does not."""
    prefixes = ("data.sources.", "data.validation.", "data.evaluation_sets.")
    return key.startswith(prefixes) and key.endswith(".path")


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
