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

from growlm.config.flatten import flat
from growlm.config.literal import with_literal_prompt
from growlm.config.load import checked_config, config_folder, typed_config
from growlm.config.schema import RunConfig
from growlm.runtime.device import multiplies_bf16, pick_accelerator
from growlm.runtime.errors import UserError
from growlm.runtime.escaping import reason_of
from growlm.storage.input_files import read_yaml
from growlm.training.run_folder import (
    CONFIG,
    RECORD,
    SUMMARY,
    Circumstances,
    RunFolder,
    lock_run,
    read_record,
)

AUTO = "auto"
HARMLESS = (
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
DATA_KEYS = {
    "embedded": "data.source",
    "text": "data.path",
    "huggingface": "data.name",
    "mixture": "data.sources",
}
"""What says which documents are read."""


def settings_of(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
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
    groups = {path.name for path in config_folder().iterdir() if path.is_dir()}
    if any(o.key_or_group in groups or o.type is OverrideType.DEL for o in parsed):
        return config
    saved = OmegaConf.structured(with_literal_prompt(saved_config(Path(config.resume))))
    for override in parsed:
        if not override.key_or_group.startswith("hydra."):
            OmegaConf.update(saved, override.key_or_group, override.value(), force_add=False)
    return replace(typed_config(saved), resume=config.resume)


def run_to_resume(config: RunConfig) -> Path | None:
    """The folder of the run to go on with; None for a new one.

    Raises:
        UserError: If it began with other settings.
    """
    if config.resume is None:
        return None
    if config.resume == AUTO:
        return newest_unfinished(config)
    path = Path(config.resume).expanduser().absolute()
    if changed := "; ".join(differences(saved_config(path), config)):
        allowed = f"it began with other settings ({changed}); leave these, or begin a new run"
        raise UserError("resume", config.resume, allowed)
    return path


def with_begun_accelerator(config: RunConfig) -> RunConfig:
    """Let `trainer.accelerator=auto` be what it was when the run of `resume=RUN_DIR` began, where that is here.

    Raises:
        UserError: If there is no such run.
    """
    if config.resume in (None, AUTO) or config.trainer.accelerator != AUTO:
        return config
    begun = str(read_record(Path(config.resume).expanduser().absolute())["accelerator"])
    if begun == "gpu" and pick_accelerator(AUTO, "trainer.accelerator") != "gpu":
        return config
    return replace(config, trainer=replace(config.trainer, accelerator=begun))


def with_begun_precision(config: RunConfig, begun: Circumstances) -> RunConfig:
    """Let `trainer.precision=auto` be what it was when the run began, whatever it would be on this machine."""
    if config.trainer.precision != AUTO:
        return config
    return replace(config, trainer=replace(config.trainer, precision=begun.precision))


def check_circumstances(config: RunConfig, folder: RunFolder, now: Circumstances) -> None:
    """Check that a run finds what it began with.

    Raises:
        UserError: If it reads other data, or would compute otherwise.
    """
    begun = folder.circumstances
    if now.data != begun.data:
        data = config.data
        how = (
            " (files that are streamed are told by name, size and time of change, and by the versions of the "
            "libraries that read them)"
        )
        allowed = f"holds other text than when the run began{how if data.streaming else ''}"
        raise UserError(DATA_KEYS[data.source], data.title, allowed)
    if now.weights != begun.weights:
        allowed = "holds other weights than when the run began"
        raise UserError("model.path", config.model.path, allowed)
    if now.precision != begun.precision:
        allowed = (
            f"the run began with {begun.precision}, and goes on with nothing else; leave it out"
        )
        raise UserError("trainer.precision", now.precision, allowed)
    if now.accelerator != begun.accelerator and config.trainer.accelerator == AUTO:
        allowed = (
            f"the run began on a {begun.accelerator}; trainer.accelerator={now.accelerator} goes on without one, "
            "more slowly, and agrees with the uninterrupted run to rounding, not to the bit"
        )
        raise UserError("resume", folder.path, allowed)


def processor_note(begun: Circumstances, now: Circumstances) -> str | None:
    """Return what a resume on another kind of processor promises; None on the same one, or on one not known."""
    if begun.processor in (None, now.processor):
        return None
    return (
        f"This run began on another kind of processor ({begun.processor}; here: {now.processor}). It continues "
        "with the same data and settings, and agrees with the uninterrupted run to rounding, not to the bit."
    )


def precision_note(begun: Circumstances, now: Circumstances) -> str | None:
    """Return what a precision costs that this processor only imitates; None where it multiplies it."""
    if begun.precision != "bf16-mixed" or multiplies_bf16(now.accelerator):
        return None
    return (
        "The run goes on with trainer.precision=bf16-mixed, as it began. This processor has no instructions for "
        "products of bf16 and imitates them: with AVX512 as fast as fp32, without it tens of times slower."
    )


def files_note(begun: Circumstances, now: Circumstances) -> str | None:
    """Return a warning if streamed files may hold other text under the same sizes and times; else None."""
    before, after = begun.newest_inode_change, now.newest_inode_change
    if before is None or after is None or after <= before:
        return None
    return (
        "warning: since the run began, a file that it streams was moved, copied, given another mode, or edited "
        "and given its old time of change again. Names, sizes and times are the same; if the text is not, "
        "begin a new run."
    )


def saved_config(path: Path) -> RunConfig:
    """The config that a run began with.

    Raises:
        UserError: If it is missing or damaged.
    """
    read_record(path)
    _, text = read_yaml(path / CONFIG, "resume", path, dict[str, Any])
    try:  # again as OmegaConf reads it, to which 1e-3 is a number
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.create(text))
        return checked_config(cast(DictConfig, merged))
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        said = error.args[0] if isinstance(error, OmegaConfBaseException) else error
        reason = reason_of(Exception(said))
        raise UserError("resume", path / CONFIG, f"is no config of a run: {reason}") from error


def newest_unfinished(config: RunConfig) -> Path | None:
    """For `resume=auto`: the newest run with these settings that has stopped before its end."""
    if config.run_dir is not None:
        wanted = Path(config.run_dir).expanduser().absolute()
        candidates = [wanted, *wanted.parent.glob(f"{wanted.name}_*")]
    else:
        candidates = list(Path("outputs").glob("*/*"))
    begun = [path for path in candidates if (path / "resume" / RECORD).is_file()]
    for path in sorted(begun, key=lambda p: (p / "resume" / RECORD).stat().st_mtime, reverse=True):
        if (path / SUMMARY).exists():
            continue
        with contextlib.suppress(UserError):
            precisions = (AUTO, read_record(path)["precision"])
            if config.trainer.precision in precisions and not differences(
                saved_config(path), config
            ):
                lock_run(path).close()
                return path
    return None


def is_path(key: str) -> bool:
    """Whether a setting says where the text of a mixture's source is; the text itself is compared."""
    return key.startswith("data.sources.") and key.endswith(".path")


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """The settings that differ and matter, as `key=old -> new`."""
    before, after = dict(flat(asdict(old))), dict(flat(asdict(new)))
    keys = [key for key in before | after if not key.startswith(HARMLESS) and not is_path(key)]
    return [
        f"{key}={before.get(key)} -> {after.get(key)}"
        for key in keys
        if before.get(key) != after.get(key)
    ]
