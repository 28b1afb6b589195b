"""Resolve a run's config, check it, and read its data, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lightning.pytorch import Callback

from growlm.config.instantiate import instantiate_target
from growlm.config.own_classes import get_spec
from growlm.config.phase_plan import make_plan
from growlm.config.run_tokenizer import list_tokenizer_files, load_run_tokenizer
from growlm.config.schema import OWN, OptimizerConfig, RunConfig
from growlm.config.validation import check_config
from growlm.data import (
    DataListener,
    RunData,
    Tokenizer,
    open_run_data,
    open_sources,
)
from growlm.data.evaluation_sets import (
    VALIDATION,
    describe_evaluation_sets,
    name_evaluation_sets,
    open_evaluation_sets,
)
from growlm.data.own_data import OwnDataRequest, open_own_samples
from growlm.data.tokenization.own_tokenizer import OWN_TOKENIZER
from growlm.distributed.process_group import DistributedContext
from growlm.growth.optimizer_state import MOMENT_OF_SCALE_KEY
from growlm.huggingface.pretrained import PretrainedFolder, open_pretrained
from growlm.inference.prompts import tally_unknown_prompt
from growlm.optim.optimizer_factory import expected_state_entries
from growlm.optim.own_optimizer import probe_optimizer, reset_unknown_states
from growlm.optim.own_schedule import check_own_schedule
from growlm.planner.calibration import load_or_measure_calibration
from growlm.planner.forecast import check_plan_fits, forecast_plan
from growlm.planner.plan_notes import describe_doubtful_settings
from growlm.reporting.events import RunListener
from growlm.reporting.loggers.logger_factory import check_logger
from growlm.runtime.errors import UserError
from growlm.runtime.hardware import detect_machine
from growlm.storage.sidecar_files import check_sidecar_files
from growlm.training.baseline import apply_baseline
from growlm.training.callbacks.lightning_callbacks import check_callbacks
from growlm.training.resume.resume_from import restore_precision
from growlm.training.run_context import RunContext
from growlm.training.run_folder import RunFolder
from growlm.training.strategy import resolve_num_devices
from growlm.training.trainer_arguments import check_extra_arguments


def resolve_config(
    config: RunConfig,
    dist_context: DistributedContext,
    listener: RunListener,
    open_resumed_run: Callable[[RunConfig], RunFolder | None],
) -> tuple[RunConfig, RunFolder | None]:
    """Check the config and resolve its open settings: devices, baseline plan and precision.

    Args:
        config: The config as requested.
        dist_context: Process group of the run.
        listener: Receives progress messages.
        open_resumed_run: Opens the folder of the run to resume, on every rank; returns None for a new run.

    Returns:
        The resolved config, and the folder of the run to resume, if any.

    Raises:
        UserError: If a setting is invalid.
    """
    config = resolve_num_devices(config, dist_context)
    check_config(config)
    config = dist_context.run_on_rank0(
        lambda: apply_baseline(config, lambda: report_measuring(listener))
    )
    resumed = open_resumed_run(config)
    if resumed is not None:
        config = restore_precision(config, resumed.fingerprint)
    return config, resumed


def build_context(
    config: RunConfig,
    requested_devices: int | None,
    dist_context: DistributedContext,
    listener: RunListener,
    callbacks: Sequence[Callback] = (),
) -> RunContext:
    """Read and tokenize the data, and check everything that can be checked before the run.

    Args:
        config: Config from `resolve_config`.
        requested_devices: `trainer.devices` as requested.
        dist_context: Process group of the run; rank 0 writes the files on disk.
        listener: Receives progress messages.
        callbacks: Lightning callbacks that the caller of the run gives it.

    Raises:
        UserError: If a setting is invalid.
    """
    machine = dist_context.run_on_rank0(
        lambda: detect_machine(config.trainer, dist_context.local_world_size)
    )
    # W&B takes a second to import, and logs on rank 0 only.
    for note in dist_context.run_on_rank0(lambda: check_logger(config)):
        listener.message_logged(note)
    extra = build_extra_callbacks(config)
    named = {f"callbacks.extra.{name}": callback for name, callback in extra.items()}
    given = {f"callbacks[{index}]": callback for index, callback in enumerate(callbacks)}
    check_callbacks(named | given, config, machine.accelerator)
    check_extra_arguments(config.trainer)
    tokenizer = load_run_tokenizer(config)
    if config.callbacks.sample_tokens:
        unknown = tally_unknown_prompt(tokenizer, config.callbacks.sample_prompt)
        if unknown.num_unknown_bytes:
            prompt = config.callbacks.sample_prompt
            listener.message_logged(f"callbacks.sample_prompt={prompt}: {unknown.describe()}")
    check_sidecar_files(list_tokenizer_files(config, tokenizer), "tokenizer.path")
    pretrained = _open_pretrained(config, tokenizer)
    plan, notes = reset_unknown_states(make_plan(config, tokenizer.vocab_size), config.optimizer)
    check_own_schedule(config.schedule, plan.num_steps)
    for note in (*notes, *describe_doubtful_settings(config, plan)):
        listener.message_logged(note)
    forecast = forecast_plan(config, plan, machine)
    check_plan_fits(config, tokenizer.vocab_size, forecast)
    calibrate = partial(load_or_measure_calibration, machine, lambda: report_measuring(listener))
    if config.data.source == OWN:
        data = dist_context.rank0_first(
            lambda: _open_own_data(config, tokenizer, dist_context, listener)
        )
        calibration = dist_context.run_on_rank0(calibrate)
    else:
        sources, counts = dist_context.rank0_first(lambda: open_sources(config.data, config.seed))
        calibration = dist_context.run_on_rank0(calibrate)
        data = dist_context.rank0_first(
            lambda: open_run_data(
                config.data,
                tokenizer,
                sources,
                counts,
                seed=config.seed,
                sequence_length=config.sequence_length,
                validation_samples=_num_validation_samples(config),
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
        forecast=forecast,
        calibration=calibration,
        dist_context=dist_context,
    )


def _num_validation_samples(config: RunConfig) -> int:
    return max(config.trainer.validation_sequences, config.verification.probe_sequences)


def _open_own_data(
    config: RunConfig, tokenizer: Tokenizer, dist_context: DistributedContext, listener: RunListener
) -> RunData:
    """Open the data of a class of the user's own, and say once what growlm cannot promise of it.

    Raises:
        UserError: If the class or its batches cannot be used.
    """
    assert config.data._target_ is not None
    evaluation = open_evaluation_sets(
        config.data,
        tokenizer,
        seed=config.seed,
        sequence_length=config.sequence_length,
        max_samples=_num_validation_samples(config),
    )
    own_validation = evaluation.get(VALIDATION)
    spec = get_spec(config, "data")
    request = OwnDataRequest(
        target=config.data._target_,
        arguments=config.data.arguments,
        make=lambda: instantiate_target("data", spec),
        sequence_length=config.sequence_length,
        vocab_size=config.model.vocab_size or tokenizer.vocab_size,
        seed=config.seed,
        validation_samples=0 if own_validation else _num_validation_samples(config),
        rank=dist_context.rank,
        world_size=dist_context.world_size,
    )
    train, validation, fingerprint, notes = open_own_samples(request)
    for note in (*notes, *describe_evaluation_sets(evaluation)):
        listener.message_logged(note)
    eos = tokenizer.eos_token_id
    if config.data.document_mask and not bool((validation.rows == eos).any()):
        listener.message_logged(
            f"data.document_mask=true: no validation sequence has the end of text, token {eos}, by which "
            "documents are told apart"
        )
    return RunData(
        train,
        validation if own_validation is None else own_validation.samples,
        None if own_validation is None else own_validation.split,
        fingerprint,
        evaluation_sets=name_evaluation_sets(evaluation),
        evaluation_fingerprints={key: each.fingerprint for key, each in evaluation.items()},
    )


def _open_pretrained(config: RunConfig, tokenizer: Tokenizer) -> PretrainedFolder | None:
    """Open the folder of the pretrained model that the first phase starts from; None if there is none.

    Raises:
        UserError: If it uses another tokenizer than the run, or its state is that of another optimizer.
    """
    if config.model.path is None:
        return None
    pretrained = open_pretrained(Path(config.model.path).expanduser(), "model.path")
    is_own = pretrained.record.get("tokenizer") == OWN_TOKENIZER == tokenizer.name
    expected = None if is_own else pretrained.open_tokenizer(config.tokenizer.eos_token)
    if expected is not None and expected.fingerprint != tokenizer.fingerprint:
        path = f" tokenizer.path={pretrained.folder}" if expected.name == "huggingface" else ""
        reason = (
            f"the model in {pretrained.folder} has another tokenizer; "
            f"use tokenizer={expected.name}{path}"
        )
        raise UserError("tokenizer.name", tokenizer.name, reason)
    first = next(iter(config.phases.values()))
    if first.optimizer_state == "carry":
        if config.optimizer.name == OWN:
            _check_own_states(pretrained, config.optimizer)
        else:
            _check_optimizer_states(pretrained, config.optimizer.name)
    return pretrained


def _check_own_states(pretrained: PretrainedFolder, settings: OptimizerConfig) -> None:
    """Check that the saved optimizer state has the entries that an optimizer of the user's own keeps.

    Raises:
        UserError: If it has others.
    """
    entries = probe_optimizer(settings).entries
    for found in pretrained.read_state_infos().values():
        if more := found.keys() - entries:
            reason = (
                f"its optimizer state has {min(more)!r}, which {settings._target_} does not keep; "
                "use optimizer_state=reset in the first phase"
            )
            raise UserError("model.path", pretrained.folder, reason)


def _check_optimizer_states(pretrained: PretrainedFolder, optimizer: str) -> None:
    """Check that the saved optimizer state belongs to this optimizer and model.

    Raises:
        UserError: If it does not.
    """
    expected = expected_state_entries(pretrained.config, optimizer)
    for name, found in pretrained.read_state_infos().items():
        # 8-bit moments and scales may differ: they are converted to the optimizer's form when read.
        if (
            found.keys() - {"step"} - MOMENT_OF_SCALE_KEY.keys()
            != set(expected.get(name, ())) - MOMENT_OF_SCALE_KEY.keys()
        ):
            reason = (
                f"its optimizer state is not of optimizer={optimizer}; "
                "use optimizer_state=reset in the first phase"
            )
            raise UserError("model.path", pretrained.folder, reason)


def report_measuring(listener: RunListener) -> None:
    """Report that the machine's speed is being measured, which takes some seconds."""
    listener.task_progress("measuring this machine", 0, None)


class _DataProgress(DataListener):
    """Adapter that forwards the progress of data preparation to the run's listener."""

    def __init__(self, listener: RunListener) -> None:
        self.listener = listener

    def data_progress(self, task: str, fraction: float | None, note: str) -> None:
        """Report progress, in thousandths where the fraction is known."""
        done, total = (0, None) if fraction is None else (round(1000 * fraction), 1000)
        self.listener.task_progress(task, done, total, note)

    def message_logged(self, text: str) -> None:
        """Forward a message."""
        self.listener.message_logged(text)


def build_extra_callbacks(config: RunConfig) -> dict[str, Callback]:
    """Build new instances of the callbacks in `callbacks.extra`, by name.

    Raises:
        UserError: If one cannot be built.
    """
    return {
        name: instantiate_target(f"callbacks.extra.{name}", spec, Callback)
        for name, spec in config.callbacks.extra.items()
    }
