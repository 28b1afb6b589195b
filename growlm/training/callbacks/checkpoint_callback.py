"""Save a phase's checkpoints and sample text from its trained model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from growlm.checkpoint.checkpoint_folder import save_model
from growlm.config.phase_plan import PlannedPhase
from growlm.config.schema import CallbacksConfig
from growlm.data.tokenization.tokenizer import Tokenizer
from growlm.distributed.process_group import DistributedContext
from growlm.growth.operators.registry import operators_to_dicts
from growlm.growth.optimizer_state import ParameterState
from growlm.inference.generation import generate
from growlm.inference.sampling import Sampling
from growlm.inference.text_stream import encode_prompt
from growlm.training.phase_module import PhaseStage
from growlm.training.phase_state import PhaseState


class PhaseCheckpointCallback(Callback):
    """Callback that saves a phase's checkpoints before the first step and after the last.

    Args:
        phase: Phase that is trained.
        folder: Folder of all checkpoints.
        metadata: Metadata to save with the config.
        tokenizer_files: Tokenizer files to copy into each checkpoint.
        seed: Seed of the run, and so of the growth.
        save_optimizer: Whether `save_as` also saves the optimizer state.
        report_saving: Function of a checkpoint's name that returns a context manager to write it in.
        dist_context: Process group of the run; rank 0 writes.
    """

    def __init__(
        self,
        phase: PlannedPhase,
        folder: Path,
        metadata: dict[str, Any],
        tokenizer_files: Sequence[Path],
        seed: int,
        save_optimizer: bool,
        report_saving: Callable[[str], AbstractContextManager[None]],
        dist_context: DistributedContext,
    ) -> None:
        self.phase, self.folder, self.metadata, self.report_saving = (
            phase,
            folder,
            metadata,
            report_saving,
        )
        self.dist_context = dist_context
        self.tokenizer_files = tokenizer_files
        self.seed, self.save_optimizer = seed, save_optimizer

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the checkpoint that `save_initial_as` names, unless the phase was resumed."""
        assert isinstance(pl_module, PhaseStage)
        if pl_module.first_step:
            return
        grown_from = {
            "operators": operators_to_dicts(self.phase.operators),
            "seed": self.seed,
            "boundary_index": self.phase.index,
        }
        record = {"grown_from": grown_from} if self.phase.operators else {}
        self._save(pl_module, self.phase.settings.save_initial_as, self.phase.first_step, record)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the checkpoint that `save_as` names."""
        assert isinstance(pl_module, PhaseStage)
        steps = trainer.global_step if self.phase.num_steps else 0
        last_step = self.phase.first_step + steps
        states = None
        if self.save_optimizer:
            states = PhaseState.from_trainer(trainer).optimizer_states
        name = self.phase.settings.save_as
        if name is not None:  # that of a phase which was extended stays until there is a new one
            self.dist_context.run_on_rank0(
                lambda: shutil.rmtree(self.folder / name, ignore_errors=True)
            )
        self._save(pl_module, name, last_step, {}, states)

    def _save(
        self,
        pl_module: LightningModule,
        name: str | None,
        step: int,
        record: dict[str, Any],
        states: dict[str, ParameterState] | None = None,
    ) -> None:
        assert isinstance(pl_module, PhaseStage)
        if name is None:
            return
        record = {"phase": self.phase.name, "global_step": step, **self.metadata, **record}
        files = self.tokenizer_files
        with self.report_saving(name):
            save_model(
                pl_module.model,
                self.folder / name,
                record,
                states,
                files,
                self.dist_context,
                create_parents=False,  # if the run folder was removed, the run must stop
            )


def remove_stale_checkpoints(
    folder: Path, phases: Sequence[PlannedPhase], unfinished: PlannedPhase | None = None
) -> None:
    """Remove checkpoints written after the state that a run resumes from, since they will be written again.

    Args:
        folder: Folder of all checkpoints.
        phases: Phases that have not begun.
        unfinished: Phase that has begun but not finished, if any.
    """
    settings = [phase.settings for phase in phases]
    names = [name for s in settings for name in (s.save_initial_as, s.save_as)]
    names += [] if unfinished is None else [unfinished.settings.save_as]
    for name in names:
        if name is not None:
            shutil.rmtree(folder / name, ignore_errors=True)


class SampleCallback(Callback):
    """Callback that generates a text sample with the trained model at the end of a phase.

    Args:
        settings: Prompt, length and temperature.
        tokenizer: Tokenizer of the run.
        seed: Seed of the sampling.
    """

    def __init__(self, settings: CallbacksConfig, tokenizer: Tokenizer, seed: int) -> None:
        self.settings, self.tokenizer, self.seed = settings, tokenizer, seed
        self.text = ""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Generate the sample, in the training precision."""
        assert isinstance(pl_module, PhaseStage)
        if not self.settings.sample_tokens:
            return
        prompt = encode_prompt(self.tokenizer, self.settings.sample_prompt)
        prompt = prompt[-pl_module.phase.model_config.max_seq_len :]
        with trainer.precision_plugin.val_step_context():
            (continuation,) = generate(
                pl_module.model,
                [prompt],
                self.settings.sample_tokens,
                Sampling(temperature=self.settings.sample_temperature),
                seeds=self.seed,
                stop_tokens=self.tokenizer.eos_token_ids,
                num_token_ids=self.tokenizer.vocab_size,
            )
        self.text = self.tokenizer.decode([*prompt, *continuation.tokens])
