"""Resolve a run's config and check everything before the run; then read its data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Callback

from growlm.checkpoint.sidecar_files import check_sidecar_files
from growlm.config.instantiate import instantiate_target
from growlm.config.phase_plan import make_plan
from growlm.config.schema import RunConfig
from growlm.config.validation import check_config
from growlm.data import DataListener, Tokenizer, load_tokenizer, open_run_data, open_sources
from growlm.distributed.process_group import DistributedContext
from growlm.growth.optimizer_state import MOMENT_OF_SCALE_KEY
from growlm.huggingface.pretrained import PretrainedFolder, open_pretrained
from growlm.optim.optimizer_factory import expected_state_entries
from growlm.planner.calibration import load_or_measure_calibration
from growlm.planner.forecast import check_plan_fits, forecast_plan
from growlm.reporting.events import RunListener
from growlm.reporting.loggers.logger_factory import check_logger
from growlm.runtime.errors import UserError
from growlm.runtime.hardware import detect_machine
from growlm.training.baseline import apply_baseline
from growlm.training.resume.resume_from import restore_precision
from growlm.training.run_context import RunContext, find_configured_tokenizer_files
from growlm.training.run_folder import RunFolder
from growlm.training.strategy import resolve_num_devices


def resolve_config(
    config: RunConfig,
    dist_context: DistributedContext,
    listener: RunListener,
    open_resumed_run: Callable[[RunConfig], RunFolder | None],
) -> tuple[RunConfig, RunFolder | None]:
    """Settle what the config leaves open, each setting once, and check it.

    Args:
        config: As it was asked for.
        world: The processes of the run.
        listener: Is told what takes long.
        open_begun: Opens the folder of the run to continue, in every process; None for a new run.

    Returns:
        The config with its devices, its baseline's plan and the precision that the run began with; that run's
        folder.

    Raises:
        UserError: If something asked for is wrong.
    """
    config = resolve_num_devices(config, dist_context)
    check_config(config)
    config = dist_context.run_on_rank0(
        lambda: apply_baseline(config, lambda: report_measuring(listener))
    )
    begun = open_resumed_run(config)
    if begun is not None:
        config = restore_precision(config, begun.fingerprint)
    return config, begun


def build_context(
    config: RunConfig,
    requested_devices: int | None,
    dist_context: DistributedContext,
    listener: RunListener,
) -> RunContext:
    """Read and tokenize the data, and check all that can be checked before the run.

    Args:
        config: From `resolve_config`.
        requested_devices: `trainer.devices` as it was asked for.
        world: The processes of the run; what one of them leaves on disk, the first one makes.
        listener: Is told what takes long.

    Raises:
        UserError: If something asked for is wrong.
    """
    machine = dist_context.run_on_rank0(
        lambda: detect_machine(config.trainer, dist_context.local_world_size)
    )
    check_logger(config.logger)
    build_extra_callbacks(config)
    tokenizer = load_tokenizer(config.tokenizer.name, config.tokenizer.path)
    check_sidecar_files(find_configured_tokenizer_files(config), "tokenizer.path")
    pretrained = _open_pretrained(config, tokenizer)
    plan = make_plan(config, tokenizer.vocab_size)
    table = forecast_plan(config, plan, machine)
    check_plan_fits(config, tokenizer.vocab_size, table)
    sources, counts = dist_context.rank0_first(lambda: open_sources(config.data, config.seed))
    speed = dist_context.run_on_rank0(
        lambda: load_or_measure_calibration(machine, lambda: report_measuring(listener))
    )
    data = dist_context.rank0_first(
        lambda: open_run_data(
            config.data,
            tokenizer,
            sources,
            counts,
            seed=config.seed,
            sequence_length=config.sequence_length,
            validation_samples=max(
                config.trainer.validation_sequences, config.verification.probe_sequences
            ),
            listener=_DataProgress(listener),
        )
    )
    return RunContext(
        config=config,
        requested_devices=requested_devices,
        plan=plan,
        tokenizer=tokenizer,
        data=data,
        pretrained=pretrained,
        forecast=table,
        calibration=speed,
        dist_context=dist_context,
    )


def _open_pretrained(config: RunConfig, tokenizer: Tokenizer) -> PretrainedFolder | None:
    """The first phase's model on disk.

    Raises:
        UserError: If it reads other tokens than the run's, or its optimizer's state is another optimizer's.
    """
    if config.model.path is None:
        return None
    pretrained = open_pretrained(Path(config.model.path).expanduser(), "model.path")
    theirs = pretrained.open_tokenizer()
    if theirs is not None and theirs.fingerprint != tokenizer.fingerprint:
        path = f" tokenizer.path={pretrained.folder}" if theirs.name == "huggingface" else ""
        allowed = (
            f"the model in {pretrained.folder} reads other tokens: tokenizer={theirs.name}{path}"
        )
        raise UserError("tokenizer.name", tokenizer.name, allowed)
    first = next(iter(config.phases.values()))
    if first.optimizer_state == "carry":
        _check_optimizer_states(pretrained, config.optimizer.name)
    return pretrained


def _check_optimizer_states(pretrained: PretrainedFolder, optimizer: str) -> None:
    """Check that the optimizer's state there is this optimizer's, and of this model.

    Raises:
        UserError: If not.
    """
    expected = expected_state_entries(pretrained.config, optimizer)
    for name, found in pretrained.read_state_infos().items():
        # In 8 bits or not: it is brought into the optimizer's form as it is read.
        if (
            found.keys() - {"step"} - MOMENT_OF_SCALE_KEY.keys()
            != set(expected.get(name, ())) - MOMENT_OF_SCALE_KEY.keys()
        ):
            allowed = f"the optimizer's state there is none of optimizer={optimizer}; another optimizer begins "
            allowed += "with optimizer_state=reset in the first phase"
            raise UserError("model.path", pretrained.folder, allowed)


def report_measuring(listener: RunListener) -> None:
    """It takes some seconds."""
    listener.task_progress("measuring this machine", 0, None)


class _DataProgress(DataListener):
    """Tells the run's listener."""

    def __init__(self, listener: RunListener) -> None:
        self.listener = listener

    def data_progress(self, task: str, fraction: float | None, note: str) -> None:
        """A bar in thousandths."""
        done, total = (0, None) if fraction is None else (round(1000 * fraction), 1000)
        self.listener.task_progress(task, done, total, note)

    def message_logged(self, text: str) -> None:
        """A line."""
        self.listener.message_logged(text)


def build_extra_callbacks(config: RunConfig) -> dict[str, Callback]:
    """The callbacks of `callbacks.extra`, new ones, by name.

    Raises:
        UserError: If one cannot be built.
    """
    callbacks = {}
    for name, spec in config.callbacks.extra.items():
        callback = instantiate_target(f"callbacks.extra.{name}", spec)
        if not isinstance(callback, Callback):
            raise UserError(f"callbacks.extra.{name}", spec["_target_"], "is no Lightning callback")
        callbacks[name] = callback
    return callbacks
