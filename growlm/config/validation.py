"""Validate a config: limits, and consistency between settings, before anything is read or written."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from growlm.config.own_classes import check_own_classes
from growlm.config.schema import (
    OPTIMIZER_SETTINGS,
    OWN,
    SETTINGS_OF_SOURCES,
    ClusterConfig,
    DataConfig,
    OperatorEntry,
    OptimizerConfig,
    PhaseConfig,
    RunConfig,
    SourceConfig,
    TrainerConfig,
)
from growlm.growth.grow_model import Operator
from growlm.growth.operators.registry import available_operators
from growlm.model.config import ModelConfig
from growlm.runtime.errors import UserError
from growlm.runtime.field_limits import check_limits

MAX_TIME_PATTERN = re.compile(r"\d{1,4}(:\d{1,4}){3}")
NEEDS_FULL_TENSORS = {
    "adafactor": "it scales updates by the size of the whole tensor",
    "muon": "it orthogonalizes whole matrices",
    "adamw_8bit": "its quantization blocks extend across rows",
}
"""Optimizers that cannot update sharded weights, and why."""
MAX_NAME_BYTES = 200
"""Maximum length of a name that becomes part of a file's or folder's; file systems allow 255 bytes in all."""
CHECKPOINT_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def check_before_start(config: RunConfig) -> None:
    """Check what must be right before processes meet and signals are handled: limits, and the time limit's form.

    Raises:
        UserError: For the first setting that is wrong.
    """
    check_limits(config)
    max_time = config.trainer.max_time
    if max_time is not None and not MAX_TIME_PATTERN.fullmatch(max_time):
        raise UserError("trainer.max_time", max_time, "must be DD:HH:MM:SS, such as 00:11:30:00")


def check_config(config: RunConfig) -> None:
    """Check the limits of every field, and that the fields of different groups are consistent.

    Raises:
        UserError: For the first setting that is wrong.
    """
    check_before_start(config)
    if not re.fullmatch(r"[\w.-]+", config.name):
        raise UserError("name", config.name, "may contain only letters, digits, '_', '-' and '.'")
    _check_name_length("name", config.name)
    if config.sequence_length > config.model.max_seq_len:
        raise UserError(
            "sequence_length",
            config.sequence_length,
            f"must be at most model.max_seq_len={config.model.max_seq_len}",
        )
    for key, folder in (("data.cache", config.data.cache), ("reuse.folder", config.reuse.folder)):
        if not folder.strip():
            raise UserError(key, folder, "is empty; name a folder, or leave it out")
    check_own_classes(config)
    check_data_config(config.data)
    if (config.tokenizer.path is not None) != (config.tokenizer.name == "huggingface"):
        reason = (
            "tokenizer=huggingface needs a folder with tokenizer.json, or that file; other tokenizers "
            "take none"
        )
        raise UserError("tokenizer.path", config.tokenizer.path, reason)
    if config.tokenizer.eos_token is not None and config.tokenizer.name != "huggingface":
        reason = "only tokenizer=huggingface takes one; other tokenizers have theirs"
        raise UserError("tokenizer.eos_token", config.tokenizer.eos_token, reason)
    _check_optimizer(config.optimizer)
    _check_sharding(config)
    _check_cluster(config.cluster, config.trainer)
    if not config.phases:
        raise UserError("phases", "{}", "a plan needs at least one phase")
    names: dict[str, str] = {}
    for index, (name, phase) in enumerate(config.phases.items()):
        if not re.fullmatch(r"[\w-]+", name):
            reason = "a phase's name may contain only letters, digits, '_' and '-'"
            raise UserError("phases", repr(name), reason)
        _check_name_length("phases", name)
        others = [other for other in config.phases if other != name]
        _check_phase(f"phases.{name}", phase, index == 0, difflib.get_close_matches(name, others))
        from_scratch = index == 0 and config.model.path is None
        _check_optimizer_state(f"phases.{name}", phase, config.optimizer, index == 0, from_scratch)
        for key in ("save_initial_as", "save_as"):
            _check_checkpoint_name(f"phases.{name}.{key}", getattr(phase, key), names)
    _check_batch_divisibility(config)
    # The tokenizer is not loaded yet; no operator depends on the vocabulary size.
    apply_phase_operators(config, config.model.to_model_config(vocab_size=1))


def apply_phase_operators(
    config: RunConfig, model: ModelConfig
) -> list[tuple[list[Operator], ModelConfig]]:
    """Return each phase's operators, and its model config after them.

    Args:
        config: Config of the run.
        model: Model config of the first phase.

    Raises:
        UserError: If a model config is invalid or an operator cannot be applied; names the full key.
    """
    try:
        model.validate()
    except UserError as error:
        raise error.with_key_prefix("model") from error
    phases = []
    for name, phase in config.phases.items():
        operators, model = apply_operators(phase.grow, f"phases.{name}.grow", model)
        phases.append((operators, model))
    return phases


def apply_operators(
    specs: Sequence[OperatorEntry], path: str, model: ModelConfig
) -> tuple[list[Operator], ModelConfig]:
    """Return the operators of a `grow` list, and the model config after them.

    Args:
        specs: Entries of the list.
        path: Config key of the list, for messages.
        model: Model config before the operators.

    Raises:
        UserError: If an operator cannot be applied; names the full key.
    """
    operators = []
    for index, spec in enumerate(specs):
        key, operator = get_operator(spec, f"{path}.{index}")
        try:
            model = operator.change(model).config
            model.validate()
        except UserError as error:
            raise error.with_key_prefix(key) from error
        operators.append(operator)
    return operators, model


def check_data_config(data: DataConfig) -> None:
    """Check that the settings of the data sources are consistent.

    Raises:
        UserError: For the first setting that is wrong.
    """
    for name in data.evaluation_sets:
        if not re.fullmatch(r"[\w-]+", name):
            reason = "a set's name may contain only letters, digits, '_' and '-'"
            raise UserError("data.evaluation_sets", repr(name), reason)
    for key, text in data.evaluation_texts.items():
        text.resolve(data, key)
    if data.source == OWN:
        return
    if data.source != "mixture":
        if data.sources:
            reason = "only data=mixture reads these; leave them out, or use data=mixture"
            raise UserError("data.sources", ", ".join(data.sources), reason)
        _check_source("data", data)
        return
    if not data.sources:
        raise UserError("data.sources", "{}", "data=mixture needs at least one source")
    for name in ("delimiter", "filter", "min_characters", "max_characters", "truncate"):
        if value := getattr(data, name):
            reason = f"a mixture has it for each source: data.sources.NAME.{name}"
            raise UserError(f"data.{name}", value, reason)
    for name, source in data.sources.items():
        if not re.fullmatch(r"[\w-]+", name):
            reason = "a source's name may contain only letters, digits, '_' and '-'"
            raise UserError("data.sources", repr(name), reason)
        _check_source(f"data.sources.{name}", source)


def _check_source(path: str, source: SourceConfig) -> None:
    if source.source == "mixture":
        reason = "must be one of embedded, text, huggingface; mixtures cannot be nested"
        raise UserError(f"{path}.source", source.source, reason)
    if source.source == OWN and path != "data":
        reason = "must be one of embedded, text, huggingface; a class of your own cannot be mixed"
        raise UserError(f"{path}.source", source.source, reason)
    for name, kinds in SETTINGS_OF_SOURCES.items():
        value = getattr(source, name)
        if value and source.source not in kinds:
            reason = (
                f"only {' and '.join(f'data={kind}' for kind in kinds)} can use it; leave it out"
            )
            raise UserError(f"{path}.{name}", value, reason)
    if source.truncate and source.max_characters is None:
        raise UserError(f"{path}.truncate", True, f"needs {path}.max_characters to cut at")
    if source.max_characters is not None and source.max_characters < source.min_characters:
        reason = f"must be at least {path}.min_characters={source.min_characters}"
        raise UserError(f"{path}.max_characters", source.max_characters, reason)
    if source.source == "text" and not source.path:
        reason = "data=text needs a file, a folder or a glob"
        raise UserError(f"{path}.path", source.path, reason)
    if source.source == "huggingface" and not source.name:
        reason = "data=huggingface needs a dataset's name, or a folder"
        raise UserError(f"{path}.name", source.name, reason)


def _check_phase(
    path: str, phase: PhaseConfig, is_first: bool, similar_names: Sequence[str]
) -> None:
    lengths = [key for key in ("steps", "tokens", "flops") if getattr(phase, key) is not None]
    if len(lengths) != 1:
        given = ", ".join(lengths) or "none"
        hint = f"; did you mean phases.{similar_names[0]}?" if similar_names and not lengths else ""
        raise UserError(path, given, f"needs exactly one of steps, tokens, flops{hint}")
    if is_first and phase.grow:
        raise UserError(
            f"{path}.grow", "[...]", "the first phase has no model to grow; leave it empty"
        )
    for index, spec in enumerate(phase.grow):
        get_operator(spec, f"{path}.grow.{index}")


def _check_cluster(cluster: ClusterConfig, trainer: TrainerConfig) -> None:
    """Check that devices other than this machine's are described completely: they cannot be measured."""
    required = {key: getattr(cluster, key) for key in ("peak_tflops", "memory_gb_per_s")}
    if cluster.accelerator is not None:
        required["memory_gb"] = cluster.memory_gb or trainer.memory_gb
    elif all(value is None for value in required.values()):
        return
    for key, value in required.items():
        if value is None:
            others = ("cluster.accelerator",) if cluster.accelerator else tuple(required)
            reason = f"must be set along with {' and '.join(others)}: it cannot be measured here"
            raise UserError(f"cluster.{key}", value, reason)


def _check_batch_divisibility(config: RunConfig) -> None:
    """Check that every batch divides evenly among the devices.

    Raises:
        UserError: If one does not; suggests changes that keep all phases close to the plan.
    """
    devices = config.trainer.devices or 1
    uneven = {name: p for name, p in config.phases.items() if p.batch_size % devices}
    if not uneven:
        return
    changes = []
    for name, phase in uneven.items():
        batch = -(-phase.batch_size // devices) * devices
        changes.append(f"phases.{name}.batch_size={batch}")
        if phase.accumulate > 1:  # keep about the same number of samples per step
            passes = -(-phase.batch_size * phase.accumulate // batch)
            changes.append(f"phases.{name}.accumulate={passes}")
    name, phase = next(iter(uneven.items()))
    reason = f"must be a multiple of trainer.devices={devices}. Try: {' '.join(changes)}"
    raise UserError(f"phases.{name}.batch_size", phase.batch_size, reason)


def _check_optimizer(settings: OptimizerConfig) -> None:
    if settings.name == OWN:
        return
    own_settings = OPTIMIZER_SETTINGS[settings.name]
    for key in dict.fromkeys(key for keys in OPTIMIZER_SETTINGS.values() for key in keys):
        value = getattr(settings, key)
        if (value is None) == (key in own_settings):
            problem = "needs a value" if value is None else "has no such setting; leave it null"
            raise UserError(f"optimizer.{key}", value, f"optimizer={settings.name} {problem}")


def _check_sharding(config: RunConfig) -> None:
    name = config.optimizer.name
    if config.trainer.strategy == "fsdp" and name in NEEDS_FULL_TENSORS:
        reason = (
            "cannot update sharded weights (trainer.strategy=fsdp): "
            f"{NEEDS_FULL_TENSORS[name]}; use adamw or sgd"
        )
        raise UserError("optimizer.name", name, reason)


def _check_optimizer_state(
    path: str, phase: PhaseConfig, optimizer: OptimizerConfig, is_first: bool, from_scratch: bool
) -> None:
    key, mode = f"{path}.optimizer_state", phase.optimizer_state
    if from_scratch and mode != "carry":
        raise UserError(key, mode, "the first phase has no optimizer state yet; leave it at carry")
    if is_first and mode not in ("carry", "reset"):
        reason = "the first phase does not grow; use carry or reset for the state in model.path"
        raise UserError(key, mode, reason)
    if optimizer.name == OWN and mode not in ("carry", "reset"):
        reason = "needs to know how the optimizer steps, which it does not of one of your own; use carry or reset"
        raise UserError(key, mode, reason)
    unsupported = {
        ("exact", "adafactor"): "it scales updates by the size of the whole tensor",
        ("exact", "muon"): "it orthogonalizes whole matrices, in bf16",
        ("exact", "adamw_8bit"): "its quantization blocks differ in the grown tensor",
        (
            "asymmetric",
            "adafactor",
        ): "its second moments mix old and new entries of a row or column",
    }
    if why := unsupported.get((mode, optimizer.name)):
        reason = f"optimizer={optimizer.name} does not support this: {why}; use carry or reset"
        raise UserError(key, mode, reason)


def _check_name_length(key: str, name: str) -> None:
    """Check that a name can be part of a folder's name.

    Raises:
        UserError: If it is too long.
    """
    if len(name.encode()) > MAX_NAME_BYTES:
        raise UserError(key, name, f"is too long; at most {MAX_NAME_BYTES} bytes")


def _check_checkpoint_name(path: str, name: str | None, taken: dict[str, str]) -> None:
    if name is None:
        return
    if not CHECKPOINT_NAME_PATTERN.fullmatch(name):
        raise UserError(path, name, "may contain only letters, digits, '_', '-' and '.'")
    _check_name_length(path, name)
    if name in taken:
        reason = f"is the name of {taken[name]} already; checkpoint names must be unique"
        raise UserError(path, name, reason)
    taken[name] = path


def get_operator(spec: OperatorEntry, path: str) -> tuple[str, Operator]:
    """Return the key (`phases.wide.grow.0.widen`) and the operator that an entry of a `grow` list sets.

    Raises:
        UserError: If the entry does not have exactly one operator.
    """
    if len(spec) != 1:
        given = ", ".join(spec) or "none"
        raise UserError(path, given, f"needs exactly one of {', '.join(available_operators())}")
    ((name, operator),) = spec.items()
    return f"{path}.{name}", operator
