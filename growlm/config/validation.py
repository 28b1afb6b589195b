"""Everything about a config that can be known to be wrong before anything is read or written."""

from __future__ import annotations

import re
from collections.abc import Sequence

from growlm.config.schema import (
    OPTIMIZER_SETTINGS,
    ClusterConfig,
    DataConfig,
    OperatorConfig,
    OptimizerConfig,
    PhaseConfig,
    RunConfig,
    SourceConfig,
    TrainerConfig,
)
from growlm.growth.api import Operator
from growlm.model.config import ModelConfig
from growlm.runtime.errors import UserError
from growlm.runtime.field_limits import check_limits

MAX_TIME_PATTERN = re.compile(r"\d{1,4}(:\d{1,4}){3}")
NEEDS_FULL_TENSORS = {
    "adafactor": "it steps by the size of the whole tensor",
    "muon": "it orthogonalises whole matrices",
    "adamw_8bit": "the blocks that it rounds by cross the rows",
}
"""Optimizers that cannot step shards, and why."""
CHECKPOINT_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def check_config(config: RunConfig) -> None:
    """Limits of every field, and what fields of different groups ask of each other.

    Raises:
        UserError: For the first thing that is wrong.
    """
    check_limits(config)
    if not re.fullmatch(r"[\w.-]+", config.name):
        raise UserError("name", config.name, "may hold letters, digits, '_', '-' and '.'")
    if config.sequence_length > config.model.max_seq_len:
        raise UserError(
            "sequence_length",
            config.sequence_length,
            f"must be at most model.max_seq_len={config.model.max_seq_len}",
        )
    check_data_config(config.data)
    if (config.tokenizer.path is not None) != (config.tokenizer.name == "huggingface"):
        allowed = "tokenizer=huggingface needs a folder with tokenizer.json, no other takes one"
        raise UserError("tokenizer.path", config.tokenizer.path, allowed)
    _check_optimizer(config.optimizer)
    _check_sharding(config)
    _check_max_time(config.trainer.max_time)
    _check_cluster(config.cluster, config.trainer)
    if not config.phases:
        raise UserError("phases", "{}", "a plan needs at least one phase")
    names: dict[str, str] = {}
    for index, (name, phase) in enumerate(config.phases.items()):
        if not re.fullmatch(r"[\w-]+", name):
            raise UserError(
                "phases", repr(name), "a phase's name may hold letters, digits, '_' and '-'"
            )
        _check_phase(f"phases.{name}", phase, is_first=index == 0)
        begins_anew = index == 0 and config.model.path is None
        _check_optimizer_state(f"phases.{name}", phase, config.optimizer, index == 0, begins_anew)
        for key in ("save_initial_as", "save_as"):
            _check_checkpoint_name(f"phases.{name}.{key}", getattr(phase, key), names)
    _check_batch_divisibility(config)
    # The tokenizer is not known yet; no operator minds the vocabulary.
    apply_phase_operators(config, config.model.to_model_config(vocab_size=1))


def apply_phase_operators(
    config: RunConfig, model: ModelConfig
) -> list[tuple[list[Operator], ModelConfig]]:
    """Each phase's operators, and its model after them.

    Args:
        config: The run.
        model: The first phase's.

    Raises:
        UserError: If a model cannot be, or an operator cannot be applied to it, with the full key.
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
    specs: Sequence[OperatorConfig], path: str, model: ModelConfig
) -> tuple[list[Operator], ModelConfig]:
    """The operators of a `grow` list, and the model after them.

    Args:
        specs: The list.
        path: Its key.
        model: Before it.

    Raises:
        UserError: If an operator cannot be applied, with the full key.
    """
    operators = []
    for index, spec in enumerate(specs):
        key, operator = select_operator(spec, f"{path}.{index}")
        try:
            model = operator.change(model).config
            model.validate()
        except UserError as error:
            raise error.with_key_prefix(key) from error
        operators.append(operator)
    return operators, model


def check_data_config(data: DataConfig) -> None:
    """What the settings of a source ask of each other.

    Raises:
        UserError: For the first thing that is wrong.
    """
    if data.source != "mixture":
        if data.sources:
            allowed = "are read with data=mixture; leave them out, or use it"
            raise UserError("data.sources", ", ".join(data.sources), allowed)
        _check_source("data", data)
        return
    if not data.sources:
        raise UserError("data.sources", "{}", "data=mixture needs at least one source")
    for name, source in data.sources.items():
        if not re.fullmatch(r"[\w-]+", name):
            allowed = "a source's name may hold letters, digits, '_' and '-'"
            raise UserError("data.sources", repr(name), allowed)
        _check_source(f"data.sources.{name}", source)


def _check_source(path: str, source: SourceConfig) -> None:
    if source.source == "mixture":
        allowed = "must be one of embedded, text, huggingface; a mixture has no mixtures in it"
        raise UserError(f"{path}.source", source.source, allowed)
    if source.source == "text" and not source.path:
        allowed = "data=text needs a file, a folder or a glob"
        raise UserError(f"{path}.path", source.path, allowed)
    if source.source == "huggingface" and not source.name:
        allowed = "data=huggingface needs a dataset's name, or a folder"
        raise UserError(f"{path}.name", source.name, allowed)


def _check_phase(path: str, phase: PhaseConfig, is_first: bool) -> None:
    lengths = [key for key in ("steps", "tokens", "flops") if getattr(phase, key) is not None]
    if len(lengths) != 1:
        given = ", ".join(lengths) or "none"
        raise UserError(path, given, "needs exactly one of steps, tokens, flops")
    if is_first and phase.grow:
        raise UserError(
            f"{path}.grow", "[...]", "the first phase has no model to grow; leave it empty"
        )
    for index, spec in enumerate(phase.grow):
        select_operator(spec, f"{path}.grow.{index}")


def _check_cluster(cluster: ClusterConfig, trainer: TrainerConfig) -> None:
    """Devices that are stated are stated whole: nothing of them can be measured."""
    together = {key: getattr(cluster, key) for key in ("peak_tflops", "memory_gb_per_s")}
    if cluster.accelerator is not None:
        together["memory_gb"] = cluster.memory_gb or trainer.memory_gb
    elif all(value is None for value in together.values()):
        return
    for key, value in together.items():
        if value is None:
            others = ("cluster.accelerator",) if cluster.accelerator else tuple(together)
            allowed = f"goes with {' and '.join(others)}: what is stated is not measured here"
            raise UserError(f"cluster.{key}", value, allowed)


def _check_batch_divisibility(config: RunConfig) -> None:
    """Every device takes an equal part of each batch.

    Raises:
        UserError: With the changes to all phases that make it so, the nearest to what the plan says.
    """
    devices = config.trainer.devices or 1
    uneven = {name: p for name, p in config.phases.items() if p.batch_size % devices}
    if not uneven:
        return
    changes = []
    for name, phase in uneven.items():
        batch = -(-phase.batch_size // devices) * devices
        changes.append(f"phases.{name}.batch_size={batch}")
        if phase.accumulate > 1:  # about as many samples a step as before
            passes = -(-phase.batch_size * phase.accumulate // batch)
            changes.append(f"phases.{name}.accumulate={passes}")
    name, phase = next(iter(uneven.items()))
    allowed = (
        f"must be a multiple of trainer.devices={devices}, each of which takes an equal part; "
    )
    allowed += f"these are: {' '.join(changes)}"
    raise UserError(f"phases.{name}.batch_size", phase.batch_size, allowed)


def _check_max_time(max_time: str | None) -> None:
    if max_time is not None and not MAX_TIME_PATTERN.fullmatch(max_time):
        raise UserError("trainer.max_time", max_time, "must be DD:HH:MM:SS, as 00:11:30:00")


def _check_optimizer(settings: OptimizerConfig) -> None:
    has = OPTIMIZER_SETTINGS[settings.name]
    for key in dict.fromkeys(key for keys in OPTIMIZER_SETTINGS.values() for key in keys):
        value = getattr(settings, key)
        if (value is None) == (key in has):
            needed = "needs a value" if value is None else "has no such setting; leave it null"
            raise UserError(f"optimizer.{key}", value, f"optimizer={settings.name} {needed}")


def _check_sharding(config: RunConfig) -> None:
    name = config.optimizer.name
    if config.trainer.strategy == "fsdp" and name in NEEDS_FULL_TENSORS:
        allowed = (
            "cannot step weights of which each process has some rows (trainer.strategy=fsdp): "
        )
        allowed += NEEDS_FULL_TENSORS[name]
        raise UserError("optimizer.name", name, f"{allowed}; adamw and sgd can")


def _check_optimizer_state(
    path: str, phase: PhaseConfig, optimizer: OptimizerConfig, is_first: bool, begins_anew: bool
) -> None:
    key, mode = f"{path}.optimizer_state", phase.optimizer_state
    if begins_anew and mode != "carry":
        raise UserError(key, mode, "the first phase has no state to take over; leave it at carry")
    if is_first and mode not in ("carry", "reset"):
        raise UserError(
            key, mode, "the first phase grows nothing; carry or reset what is in model.path"
        )
    refused = {
        ("exact", "adafactor"): "it steps by the size of the whole tensor, not entry by entry",
        ("exact", "muon"): "it orthogonalises whole matrices, in bf16",
        (
            "exact",
            "adamw_8bit",
        ): "its moments are rounded by blocks, which are others in the grown tensor",
        (
            "asymmetric",
            "adafactor",
        ): "its second moments belong to rows and columns, old and new entries alike",
    }
    if reason := refused.get((mode, optimizer.name)):
        raise UserError(
            key, mode, f"optimizer={optimizer.name} cannot: {reason}; use carry or reset"
        )


def _check_checkpoint_name(path: str, name: str | None, taken: dict[str, str]) -> None:
    if name is None:
        return
    if not CHECKPOINT_NAME_PATTERN.fullmatch(name):
        raise UserError(path, name, "may hold letters, digits, '_', '-' and '.'")
    if name in taken:
        raise UserError(path, name, f"is {taken[name]} already; artefacts need names of their own")
    taken[name] = path


def select_operator(spec: OperatorConfig, path: str) -> tuple[str, Operator]:
    """The operator of an entry of `grow`, and its key.

    Raises:
        UserError: If there is not exactly one.
    """
    chosen = [(key, op) for key, op in vars(spec).items() if op is not None]
    if len(chosen) != 1:
        given = ", ".join(key for key, _ in chosen) or "none"
        raise UserError(path, given, f"needs exactly one of {', '.join(vars(spec))}")
    key, operator = chosen[0]
    return f"{path}.{key}", operator
