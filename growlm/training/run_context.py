"""Define `RunContext`: the resolved config, plan, data, forecast and process group of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from growlm.config.phase_plan import Plan
from growlm.config.run_tokenizer import list_tokenizer_files
from growlm.config.schema import RunConfig
from growlm.data import RunData, Tokenizer, ValidationSplit
from growlm.data.document_boundaries import DocumentPositions, make_document_positions
from growlm.data.tokenization.huggingface_tokenizer import (
    EOS_TOKEN_ENTRY,
    HUGGINGFACE,
    TOKENIZER_JSON,
)
from growlm.distributed.process_group import DistributedContext
from growlm.huggingface.pretrained import PretrainedFolder
from growlm.inference.scoring import bits_per_byte
from growlm.planner.calibration import Calibration
from growlm.planner.forecast import Forecast
from growlm.runtime.hardware import Machine, describe_processor
from growlm.training.run_folder import RunFingerprint


@dataclass(frozen=True)
class RunContext:
    """Everything a run needs, resolved and checked once before anything is written, then immutable."""

    config: RunConfig
    """Config with resolved device count, the baseline's plan, and the precision of a resumed run."""
    requested_devices: int | None
    """`trainer.devices` as requested, before it was resolved."""
    plan: Plan
    tokenizer: Tokenizer
    pretrained: PretrainedFolder | None
    """The folder of the pretrained model that the first phase starts from; None for random initial weights."""
    data: RunData
    forecast: Forecast
    calibration: Calibration
    dist_context: DistributedContext

    @property
    def saved_config(self) -> RunConfig:
        """The config as saved in `config.yaml`: with the requested devices, since a resume may use others."""
        trainer = replace(self.config.trainer, devices=self.requested_devices)
        return replace(self.config, trainer=trainer)

    @property
    def machine(self) -> Machine:
        """The machine that the run uses."""
        return self.forecast.machine

    @property
    def document_positions(self) -> DocumentPositions | None:
        """Function that finds each token's position in its document; None if attention crosses documents."""
        is_masked = self.config.data.document_mask
        return make_document_positions(self.tokenizer) if is_masked else None

    @property
    def nats_to_bits_per_byte(self) -> float | None:
        """Factor from nats per token to bits per byte, measured on the validation documents; None if unknown."""
        split = self.data.validation_split
        return None if split is None else self._measure_bits_per_byte(split)

    @property
    def evaluation_bits_per_byte(self) -> dict[str, float | None]:
        """The same factor for each of the further evaluation sets, by name, measured on its own documents."""
        return {
            name: self._measure_bits_per_byte(each.split)
            for name, each in self.data.evaluation_sets.items()
        }

    def _measure_bits_per_byte(self, split: ValidationSplit) -> float | None:
        length = self.config.trainer.validation_sequences * self.config.sequence_length
        num_tokens, num_bytes = split.measure_first_documents(length)
        return bits_per_byte(num_tokens, num_bytes) if num_bytes else None

    @property
    def fingerprint(self) -> RunFingerprint:
        """Fingerprint of the inputs that must be unchanged for an exact resume."""
        return RunFingerprint(
            self.data.fingerprint,
            self.machine.accelerator,
            self.machine.precision,
            None if self.pretrained is None else self.pretrained.digest,
            describe_processor(self.machine),
            self.data.newest_inode_change,
            dict(self.data.evaluation_fingerprints) or None,
        )

    @property
    def source_metadata(self) -> dict[str, Any]:
        """Metadata of the initial Hugging Face model (its special tokens), which every checkpoint carries."""
        record = {} if self.pretrained is None else self.pretrained.record
        return {key: value for key, value in record.items() if key == "huggingface"}

    @property
    def tokenizer_files(self) -> list[Path]:
        """Tokenizer files to copy into each checkpoint; empty for built-in tokenizers, which are found by name."""
        return list_tokenizer_files(self.config, self.tokenizer)

    @property
    def tokenizer_record(self) -> dict[str, str]:
        """Entries of a checkpoint's `config.json` by which its tokenizer is found.

        The name is that of the files it has, or of a built-in one; the end of text, if the files do not name it.
        """
        if all(path.name != TOKENIZER_JSON for path in self.tokenizer_files):
            return {"tokenizer": self.config.tokenizer.name}
        eos_token = getattr(self.tokenizer, "eos_token_to_record", None)
        return {"tokenizer": HUGGINGFACE} | (
            {} if eos_token is None else {EOS_TOKEN_ENTRY: eos_token}
        )

    def make_probe(self) -> Tensor:
        """Return the fixed tokens of the boundary checks, the first validation sequences: (sequences, time)."""
        settings = self.config.verification
        validation = self.data.validation
        count = min(settings.probe_sequences, validation.num_windows)
        length = min(settings.probe_length, self.config.sequence_length)
        return torch.stack([validation[i][:length] for i in range(count)])
