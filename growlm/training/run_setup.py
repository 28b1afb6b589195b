"""Before a run: everything that can be known to be wrong is looked at, then the data is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from growlm.checkpoint.sidecar_files import check_links
from growlm.config.instantiate import build
from growlm.config.phase_plan import Plan, make_plan
from growlm.config.schema import RunConfig
from growlm.config.validation import check_config
from growlm.data import DataListener, RunData, Tokenizer, load_tokenizer, open_data, open_sources
from growlm.data.tokenization.huggingface_tokenizer import tokenizer_files
from growlm.distributed.process_group import World
from growlm.growth.optimizer_state import SCALES
from growlm.huggingface.pretrained import Pretrained, open_pretrained
from growlm.inference.scoring import bits_per_byte
from growlm.optim.optimizer_factory import state_entries
from growlm.planner.calibration import Calibration, calibration
from growlm.planner.forecast import Forecast, check_fits, forecast
from growlm.reporting.events import RunListener
from growlm.reporting.loggers.logger_factory import check_logger
from growlm.runtime.errors import UserError
from growlm.runtime.hardware import Machine, describe_processor, find_machine
from growlm.training.run_folder import Circumstances


@dataclass(frozen=True)
class Prepared:
    """Everything that could be known to be wrong has been looked at; nothing is written yet."""

    config: RunConfig
    plan: Plan
    tokenizer: Tokenizer
    pretrained: Pretrained | None
    """Where the first phase's model comes from, if it was trained before."""
    data: RunData
    forecast: Forecast
    speed: Calibration
    world: World

    @property
    def machine(self) -> Machine:
        """Where it runs."""
        return self.forecast.machine

    @property
    def bits_per_nat(self) -> float:
        """Bits per byte that one nat per token is, over the held-out documents that are validated on."""
        length = self.config.trainer.validation_sequences * self.config.sequence_length
        return bits_per_byte(*self.data.held_out.first_documents(length))

    @property
    def circumstances(self) -> Circumstances:
        """What must be found again for the run to go on exactly."""
        return Circumstances(
            self.data.identity,
            self.machine.accelerator,
            self.machine.precision,
            None if self.pretrained is None else self.pretrained.digest,
            describe_processor(self.machine),
            self.data.newest_inode_change,
        )

    @property
    def origin(self) -> dict[str, Any]:
        """What artefacts remember of the Hugging Face model that the run began with: its special tokens."""
        record = {} if self.pretrained is None else self.pretrained.record
        return {key: value for key, value in record.items() if key == "huggingface"}

    @property
    def tokenizer_files(self) -> list[Path]:
        """What an artefact carries so that its tokenizer is there; our own are known by their names."""
        return _tokenizer_files(self.config)

    def probe(self) -> Tensor:
        """The frozen tokens of the boundary checks: the first held-out sequences, (sequences, time)."""
        settings = self.config.verification
        validation = self.data.validation
        count = min(settings.probe_sequences, validation.num_windows)
        length = min(settings.probe_length, self.config.sequence_length)
        return torch.stack([validation[i][:length] for i in range(count)])


def prepare(config: RunConfig, listener: RunListener, world: World) -> Prepared:
    """Check everything, then read and tokenize the data.

    Args:
        config: Of the run.
        listener: Is told what takes long.
        world: The processes of the run; what one of them leaves on disk, the first one makes.

    Raises:
        UserError: If something asked for is wrong.
    """
    check_config(config)
    machine = world.first(lambda: find_machine(config.trainer, world.local_size))
    check_logger(config.logger)
    extra_callbacks(config)
    tokenizer = load_tokenizer(config.tokenizer.name, config.tokenizer.path)
    check_links(_tokenizer_files(config), "tokenizer.path")
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
    return Prepared(
        config=config,
        plan=plan,
        tokenizer=tokenizer,
        data=data,
        pretrained=pretrained,
        forecast=table,
        speed=speed,
        world=world,
    )


def _tokenizer_files(config: RunConfig) -> list[Path]:
    path = config.tokenizer.path
    return [] if path is None else tokenizer_files(Path(path).expanduser())


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
