"""What a run works with: its config, plan, data, estimates and processes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from growlm.config.phase_plan import Plan
from growlm.config.schema import RunConfig
from growlm.data import RunData, Tokenizer
from growlm.data.tokenization.huggingface_tokenizer import find_tokenizer_files
from growlm.distributed.process_group import DistributedContext
from growlm.huggingface.pretrained import PretrainedFolder
from growlm.inference.scoring import bits_per_byte
from growlm.planner.calibration import Calibration
from growlm.planner.forecast import Forecast
from growlm.runtime.hardware import Machine, describe_processor
from growlm.training.run_folder import RunFingerprint


@dataclass(frozen=True)
class RunContext:
    """What a run works with: resolved and checked once, before anything is written, and never changed."""

    config: RunConfig
    """With the devices that there are, the baseline's plan, and the precision that a resumed run began with."""
    requested_devices: int | None
    """`trainer.devices` as it was asked for."""
    plan: Plan
    tokenizer: Tokenizer
    pretrained: PretrainedFolder | None
    """Where the first phase's model comes from, if it was trained before."""
    data: RunData
    forecast: Forecast
    calibration: Calibration
    dist_context: DistributedContext

    @property
    def saved_config(self) -> RunConfig:
        """The config as `config.yaml` holds it: a resume may have other devices."""
        trainer = replace(self.config.trainer, devices=self.requested_devices)
        return replace(self.config, trainer=trainer)

    @property
    def machine(self) -> Machine:
        """Where it runs."""
        return self.forecast.machine

    @property
    def nats_to_bits_per_byte(self) -> float:
        """Bits per byte that one nat per token is, over the held-out documents that are validated on."""
        length = self.config.trainer.validation_sequences * self.config.sequence_length
        return bits_per_byte(*self.data.validation_split.measure_first_documents(length))

    @property
    def fingerprint(self) -> RunFingerprint:
        """What must be found again for the run to go on exactly."""
        return RunFingerprint(
            self.data.fingerprint,
            self.machine.accelerator,
            self.machine.precision,
            None if self.pretrained is None else self.pretrained.digest,
            describe_processor(self.machine),
            self.data.newest_inode_change,
        )

    @property
    def source_metadata(self) -> dict[str, Any]:
        """What artefacts remember of the Hugging Face model that the run began with: its special tokens."""
        record = {} if self.pretrained is None else self.pretrained.record
        return {key: value for key, value in record.items() if key == "huggingface"}

    @property
    def tokenizer_files(self) -> list[Path]:
        """What an artefact carries so that its tokenizer is there; our own are known by their names."""
        return find_configured_tokenizer_files(self.config)

    def make_probe(self) -> Tensor:
        """The frozen tokens of the boundary checks: the first held-out sequences, (sequences, time)."""
        settings = self.config.verification
        validation = self.data.validation
        count = min(settings.probe_sequences, validation.num_windows)
        length = min(settings.probe_length, self.config.sequence_length)
        return torch.stack([validation[i][:length] for i in range(count)])


def find_configured_tokenizer_files(config: RunConfig) -> list[Path]:
    """Return the files of the tokenizer that the config names by its folder."""
    path = config.tokenizer.path
    return [] if path is None else find_tokenizer_files(Path(path).expanduser())
