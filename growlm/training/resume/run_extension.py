"""Give a run that has stopped or finished other lengths: `resume=RUN_DIR phases.deep.steps=+500`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from growlm.checkpoint.resume_state import RESUME_SETTING, ResumeState
from growlm.checkpoint.run_record import CONFIG_FILE, RUN_RECORD_FILE, SUMMARY_FILE, read_run_record
from growlm.config.composing.extended_lengths import list_length_changes
from growlm.config.composing.phase_overrides import LENGTH_KEYS
from growlm.config.composing.resumed_config import load_saved_config
from growlm.config.phase_plan import Plan, PlannedPhase, make_plan
from growlm.config.schema import RunConfig, ScheduleConfig
from growlm.optim.lr_schedule import compute_lr_factor
from growlm.runtime.errors import UserError
from growlm.runtime.number_format import format_learning_rate
from growlm.storage.atomic_files import atomic_write_text
from growlm.storage.integrity import dump_checksummed_json, hash_file
from growlm.training.resume.state_schema import is_phase_finished
from growlm.training.run_folder import KEPT_NO_STATE, RunFolder, format_saved_config


def is_extension(run_dir: Path, config: RunConfig) -> bool:
    """Return whether a config has other lengths of phases than the run that it resumes."""
    return bool(list_length_changes(load_saved_config(run_dir), config))


def extend_run(
    folder: RunFolder, config: RunConfig, plan: Plan, state: ResumeState | None
) -> list[str]:
    """Give a run the lengths of a config, from now on and for later resumes; do nothing if it has them.

    Args:
        folder: Folder of the run, locked.
        config: Config that resumes the run.
        plan: Plan of that config.
        state: Newest state of the run; None if it has none yet.

    Returns:
        A note for each phase: its lengths, and what becomes of the learning rate.

    Raises:
        UserError: If a phase has finished or has done more steps already; nothing was written.
    """
    saved = load_saved_config(folder.path)
    changes = list_length_changes(saved, config)
    if not changes:
        return []
    if state is None and (folder.path / SUMMARY_FILE).exists():
        raise UserError(RESUME_SETTING, folder.path, KEPT_NO_STATE)
    if state is not None:
        for name in changes:
            _check_length(name, config, plan, state)
    before = make_plan(saved, plan.phases[0].model_config.vocab_size)
    lengths = {
        name: replace(phase, **_get_length(config, name)) for name, phase in saved.phases.items()
    }
    _write_config(folder.path, replace(saved, phases=lengths))
    changed = "; ".join(f"{name} {old} → {new}" for name, (old, new) in changes.items())
    rates = "" if state is None else f". {_describe_rates(config.schedule, before, plan, state)}"
    return [f"New length: {changed}{rates}"]


def with_written_length(error: UserError, overrides: Sequence[str]) -> UserError:
    """Return an error about a length with what the command line has: `+4`, not the sum."""
    for override in overrides:
        key, _, value = override.partition("=")
        if key == error.key and value.strip().startswith("+"):
            return UserError(key, value.strip(), error.reason)
    return error


def _get_length(config: RunConfig, name: str) -> dict[str, Any]:
    return {key: getattr(config.phases[name], key) for key in LENGTH_KEYS}


def _check_length(name: str, config: RunConfig, plan: Plan, state: ResumeState) -> None:
    """Check that a phase is not over, and has fewer steps behind it than its new length.

    Raises:
        UserError: If it is, or has as many.
    """
    given = {key: value for key, value in _get_length(config, name).items() if value is not None}
    ((key, value),) = given.items()
    current, phase = plan.get_phase(state.record["phase"]), plan.get_phase(name)
    done = state.record["step"]
    if phase.index < current.index or (phase is current and state.record.get("finished")):
        following = plan.phases[phase.index + 1].name
        reason = (
            f"{name} has finished, and {following} begins with what it trained; only a phase that has not "
            "finished, or the last one, can get another length"
        )
        raise UserError(f"phases.{name}.{key}", value, reason)
    if phase is current and phase.num_steps <= done:
        reason = f"{name} has done {done:,} steps already; give a length of more than that"
        raise UserError(f"phases.{name}.{key}", value, reason)


def _write_config(run_dir: Path, config: RunConfig) -> None:
    """Write the config of a run that is extended, and mark the run as unfinished.

    Interrupted anywhere, this leaves a run that can be resumed, with its old length or the new one.
    """
    text, record = format_saved_config(config), read_run_record(run_dir)
    digest = hashlib.sha256(text.encode()).hexdigest()
    new = {**record, "config": digest, "former_config": hash_file(run_dir / CONFIG_FILE)}
    atomic_write_text(run_dir / "resume" / RUN_RECORD_FILE, dump_checksummed_json(new))
    (run_dir / SUMMARY_FILE).unlink(missing_ok=True)
    atomic_write_text(run_dir / CONFIG_FILE, text)


def _describe_rates(schedule: ScheduleConfig, before: Plan, after: Plan, state: ResumeState) -> str:
    """Return what becomes of the learning rate, in a sentence."""
    phase, step = after.get_phase(state.record["phase"]), state.record["step"]
    if is_phase_finished(state.record, phase) and phase is not after.phases[-1]:
        phase, step = after.phases[phase.index + 1], 0
    old, last = before.phases[phase.index], after.phases[-1]
    is_within, done = step < old.num_steps, max(0, step - 1)
    former = _compute_rate(schedule, before, old, step if is_within else done)
    was = "it would have been" if is_within else "the last had"
    rate, end = (
        _compute_rate(schedule, after, each, at)
        for each, at in ((phase, step), (last, max(0, last.num_steps - 1)))
    )
    is_same = _compute_rate(schedule, before, old, done) == _compute_rate(
        schedule, after, phase, done
    )
    past = (
        "as in a run of this length from the start"
        if is_same
        else "the steps before had those of the former length, so a run of this length from the start differs"
    )
    return (
        f"schedule={schedule.name}: the next step's learning rate is {format_learning_rate(rate)} "
        f"({was} {format_learning_rate(former)}), the last step's {format_learning_rate(end)}; {past}"
    )


def _compute_rate(schedule: ScheduleConfig, plan: Plan, phase: PlannedPhase, step: int) -> float:
    return phase.settings.lr * compute_lr_factor(schedule, plan, phase, step)
