"""Which run `resume=` means, and whether it may go on with these settings."""

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
from growlm.config.load import get_config_folder, to_run_config, to_valid_run_config
from growlm.config.schema import RunConfig
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
    "model.path",  # likewise the weights
    "tokenizer.path",  # likewise the tokens
    "logger.",
    "resume",
    "reuse.",
    "run_dir",
    "trainer.accelerator",  # see `check_circumstances`
    "trainer.activation_checkpointing",  # the same numbers, computed again
    "trainer.devices",  # these and the strategy change the order of sums
    "trainer.keep_freed_memory",
    "trainer.max_time",
    "trainer.memory_gb",
    "trainer.on_nonfinite",
    "trainer.precision",  # what it came to is compared
    "trainer.strategy",
    "trainer.timeout_minutes",
)
"""What may differ when a run goes on: how these keys begin. They change no weight and no row of the history, but
for rounding where the devices are others."""
DATA_SETTING_BY_SOURCE = {
    "embedded": "data.source",
    "text": "data.path",
    "huggingface": "data.name",
    "mixture": "data.sources",
}
"""What says which documents are read."""


def resolve_resume_config(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """What `resume=RUN_DIR` on a command line asks for: the run's own settings, and the keys given beside it.

    Args:
        config: As Hydra composed it.
        overrides: From the command line. With a choice of a group among them, as `phase_plan=four_stage`, the
            composed config is meant as it stands.

    Raises:
        UserError: If there is no such run.
    """
    if config.resume in (None, AUTO):
        return config
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    groups = {path.name for path in get_config_folder().iterdir() if path.is_dir()}
    if any(o.key_or_group in groups or o.type is OverrideType.DEL for o in parsed):
        return config
    saved = OmegaConf.structured(
        escape_prompt_interpolations(load_saved_config(Path(config.resume)))
    )
    for override in parsed:
        if not override.key_or_group.startswith("hydra."):
            OmegaConf.update(saved, override.key_or_group, override.value(), force_add=False)
    return replace(to_run_config(saved), resume=config.resume)


def find_run_to_resume(config: RunConfig) -> Path | None:
    """The folder of the run to go on with; None for a new one.

    Raises:
        UserError: If it began with other settings.
    """
    if config.resume is None:
        return None
    if config.resume == AUTO:
        return find_newest_unfinished_run(config)
    path = Path(config.resume).expanduser().absolute()
    if changed := "; ".join(diff_configs(load_saved_config(path), config)):
        allowed = f"it began with other settings ({changed}); leave these, or begin a new run"
        raise UserError("resume", config.resume, allowed)
    return path


def restore_accelerator(config: RunConfig) -> RunConfig:
    """Let `trainer.accelerator=auto` be what it was when the run of `resume=RUN_DIR` began, where that is here.

    Raises:
        UserError: If there is no such run.
    """
    if config.resume in (None, AUTO) or config.trainer.accelerator != AUTO:
        return config
    begun = str(read_run_record(Path(config.resume).expanduser().absolute())["accelerator"])
    if begun == "gpu" and resolve_accelerator(AUTO, "trainer.accelerator") != "gpu":
        return config
    return replace(config, trainer=replace(config.trainer, accelerator=begun))


def restore_precision(config: RunConfig, saved: RunFingerprint) -> RunConfig:
    """Let `trainer.precision=auto` be what it was when the run began, whatever it would be on this machine."""
    if config.trainer.precision != AUTO:
        return config
    return replace(config, trainer=replace(config.trainer, precision=saved.precision))


def check_fingerprint(config: RunConfig, folder: RunFolder, current: RunFingerprint) -> None:
    """Check that a run finds what it began with.

    Raises:
        UserError: If it reads other data, or would compute otherwise.
    """
    begun = folder.fingerprint
    if current.data != begun.data:
        data = config.data
        how = (
            " (files that are streamed are told by name, size and time of change, and by the versions of the "
            "libraries that read them)"
        )
        allowed = f"holds other text than when the run began{how if data.streaming else ''}"
        raise UserError(DATA_SETTING_BY_SOURCE[data.source], data.display_name, allowed)
    if current.weights != begun.weights:
        allowed = "holds other weights than when the run began"
        raise UserError("model.path", config.model.path, allowed)
    if current.precision != begun.precision:
        allowed = (
            f"the run began with {begun.precision}, and goes on with nothing else; leave it out"
        )
        raise UserError("trainer.precision", current.precision, allowed)
    if current.accelerator != begun.accelerator and config.trainer.accelerator == AUTO:
        allowed = (
            f"the run began on a {begun.accelerator}; trainer.accelerator={current.accelerator} goes on without one, "
            "more slowly, and agrees with the uninterrupted run to rounding, not to the bit"
        )
        raise UserError("resume", folder.path, allowed)


def describe_processor_change(saved: RunFingerprint, current: RunFingerprint) -> str | None:
    """Return what a resume on another kind of processor promises; None on the same one, or on one not known."""
    if saved.processor in (None, current.processor):
        return None
    return (
        f"This run began on another kind of processor ({saved.processor}; here: {current.processor}). It continues "
        "with the same data and settings, and agrees with the uninterrupted run to rounding, not to the bit."
    )


def describe_precision_cost(saved: RunFingerprint, current: RunFingerprint) -> str | None:
    """Return what a precision costs that this processor only imitates; None where it multiplies it."""
    if saved.precision != "bf16-mixed" or has_native_bf16(current.accelerator):
        return None
    return (
        "The run goes on with trainer.precision=bf16-mixed, as it began. This processor has no instructions for "
        "products of bf16 and imitates them: with AVX512 as fast as fp32, without it tens of times slower."
    )


def describe_possible_file_change(saved: RunFingerprint, current: RunFingerprint) -> str | None:
    """Return a warning if streamed files may hold other text under the same sizes and times; else None."""
    before, after = saved.newest_inode_change, current.newest_inode_change
    if before is None or after is None or after <= before:
        return None
    return (
        "warning: since the run began, a file that it streams was moved, copied, given another mode, or edited "
        "and given its old time of change again. Names, sizes and times are the same; if the text is not, "
        "begin a new run."
    )


def load_saved_config(path: Path) -> RunConfig:
    """The config that a run began with.

    Raises:
        UserError: If it is missing or damaged.
    """
    read_run_record(path)
    _, text = read_yaml(path / CONFIG_FILE, "resume", path, dict[str, Any])
    try:  # again as OmegaConf reads it, to which 1e-3 is a number
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.create(text))
        return to_valid_run_config(cast(DictConfig, merged))
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        said = error.args[0] if isinstance(error, OmegaConfBaseException) else error
        reason = summarize_error(Exception(said))
        raise UserError("resume", path / CONFIG_FILE, f"is no config of a run: {reason}") from error


def find_newest_unfinished_run(config: RunConfig) -> Path | None:
    """For `resume=auto`: the newest run with these settings that has stopped before its end."""
    if config.run_dir is not None:
        wanted = Path(config.run_dir).expanduser().absolute()
        candidates = [wanted, *wanted.parent.glob(f"{wanted.name}_*")]
    else:
        candidates = list(Path("outputs").glob("*/*"))
    begun = [path for path in candidates if (path / "resume" / RUN_RECORD_FILE).is_file()]
    for path in sorted(
        begun, key=lambda p: (p / "resume" / RUN_RECORD_FILE).stat().st_mtime, reverse=True
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
    """Whether a setting says where the text of a mixture's source is; the text itself is compared."""
    return key.startswith("data.sources.") and key.endswith(".path")


def diff_configs(old: RunConfig, new: RunConfig) -> list[str]:
    """The settings that differ and matter, as `key=old -> new`."""
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
