"""Resolve a run's config and check everything before the run; then read its data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Callback

from growlm.checkpoint.sidecar_files import check_links
from growlm.config.instantiate import build
from growlm.config.phase_plan import make_plan
from growlm.config.schema import RunConfig
from growlm.config.validation import check_config
from growlm.data import DataListener, Tokenizer, load_tokenizer, open_data, open_sources
from growlm.distributed.process_group import World
from growlm.growth.optimizer_state import SCALES
from growlm.huggingface.pretrained import Pretrained, open_pretrained
from growlm.optim.optimizer_factory import state_entries
from growlm.planner.calibration import calibration
from growlm.planner.forecast import check_fits, forecast
from growlm.reporting.events import RunListener
from growlm.reporting.loggers.logger_factory import check_logger
from growlm.runtime.errors import UserError
from growlm.runtime.hardware import find_machine
from growlm.training.baseline import with_baseline
from growlm.training.resume.resume_from import with_begun_precision
from growlm.training.run_context import RunContext, configured_tokenizer_files
from growlm.training.run_folder import RunFolder
from growlm.training.strategy import with_devices


def resolve_config(
    config: RunConfig,
    world: World,
    listener: RunListener,
    open_begun: Callable[[RunConfig], RunFolder | None],
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
    config = with_devices(config, world)
    check_config(config)
    config = world.first(lambda: with_baseline(config, lambda: tell_measuring(listener)))
    begun = open_begun(config)
    if begun is not None:
        config = with_begun_precision(config, begun.circumstances)
    return config, begun


def build_context(
    config: RunConfig, requested_devices: int | None, world: World, listener: RunListener
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
    machine = world.first(lambda: find_machine(config.trainer, world.local_size))
    check_logger(config.logger)
    extra_callbacks(config)
    tokenizer = load_tokenizer(config.tokenizer.name, config.tokenizer.path)
    check_links(configured_tokenizer_files(config), "tokenizer.path")
    pretrained = _pretrained(config, tokenizer)
    plan = make_plan(config, tokenizer.vocab_size)
    table = forecast(config, plan, machine)
    check_fits(config, tokenizer.vocab_size, table)
    sources, counts = world.after_first(lambda: open_sources(config.data, config.seed))
    speed = world.first(lambda: calibration(machine, lambda: tell_measuring(listener)))
    data = world.after_first(
        lambda: open_data(
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
        speed=speed,
        world=world,
    )


def _pretrained(config: RunConfig, tokenizer: Tokenizer) -> Pretrained | None:
    """The first phase's model on disk.

    Raises:
        UserError: If it reads other tokens than the run's, or its optimizer's state is another optimizer's.
    """
    if config.model.path is None:
        return None
    pretrained = open_pretrained(Path(config.model.path).expanduser(), "model.path")
    theirs = pretrained.tokenizer()
    if theirs is not None and theirs.fingerprint != tokenizer.fingerprint:
        path = f" tokenizer.path={pretrained.folder}" if theirs.name == "huggingface" else ""
        allowed = (
            f"the model in {pretrained.folder} reads other tokens: tokenizer={theirs.name}{path}"
        )
        raise UserError("tokenizer.name", tokenizer.name, allowed)
    first = next(iter(config.phases.values()))
    if first.optimizer_state == "carry":
        _check_states(pretrained, config.optimizer.name)
    return pretrained


def _check_states(pretrained: Pretrained, optimizer: str) -> None:
    """Check that the optimizer's state there is this optimizer's, and of this model.

    Raises:
        UserError: If not.
    """
    expected = state_entries(pretrained.config, optimizer)
    for name, found in pretrained.state_entries().items():
        # In 8 bits or not: it is brought into the optimizer's form as it is read.
        if found.keys() - {"step"} - SCALES.keys() != set(expected.get(name, ())) - SCALES.keys():
            allowed = f"the optimizer's state there is none of optimizer={optimizer}; another optimizer begins "
            allowed += "with optimizer_state=reset in the first phase"
            raise UserError("model.path", pretrained.folder, allowed)


def tell_measuring(listener: RunListener) -> None:
    """It takes some seconds."""
    listener.task_progress("measuring this machine", 0, None)


class _DataProgress(DataListener):
    """Tells the run's listener."""

    def __init__(self, listener: RunListener) -> None:
        self.listener = listener

    def data_progress(self, task: str, share: float | None, note: str) -> None:
        """A bar in thousandths."""
        done, total = (0, None) if share is None else (round(1000 * share), 1000)
        self.listener.task_progress(task, done, total, note)

    def noted(self, text: str) -> None:
        """A line."""
        self.listener.noted(text)


def extra_callbacks(config: RunConfig) -> dict[str, Callback]:
    """The callbacks of `callbacks.extra`, new ones, by name.

    Raises:
        UserError: If one cannot be built.
    """
    callbacks = {}
    for name, spec in config.callbacks.extra.items():
        callback = build(f"callbacks.extra.{name}", spec)
        if not isinstance(callback, Callback):
            raise UserError(f"callbacks.extra.{name}", spec["_target_"], "is no Lightning callback")
        callbacks[name] = callback
    return callbacks
