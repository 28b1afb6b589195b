"""Running a plan: check, read, find where to begin, then let the phases run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from lightning.pytorch import Callback

from growlm.checkpoint.resume_state import ResumeState
from growlm.config.schema import RunConfig
from growlm.distributed.process_group import DistributedContext
from growlm.distributed.startup import init_distributed, translate_peer_errors
from growlm.reporting.console.console_reporter import ConsoleReporter
from growlm.reporting.console.plain_console import make_stdout_console
from growlm.reporting.events import BroadcastListener
from growlm.reporting.html import write_report
from growlm.reporting.loggers.logger_factory import build_logger
from growlm.reporting.loggers.metric_logger import MetricLogger
from growlm.reporting.records import BoundaryRecord, RunSummary
from growlm.reporting.run_history import RunHistoryWriter, write_json
from growlm.runtime.device import resolve_accelerator
from growlm.runtime.errors import RunError, UserError
from growlm.runtime.memory import gc_frozen
from growlm.runtime.signals import GracefulStop, Interrupted
from growlm.storage.integrity import hash_file
from growlm.training.phase_runner import PhaseRunner
from growlm.training.requirements import check_requirements
from growlm.training.resume.fingerprint import compute_phase_cache_keys
from growlm.training.resume.phase_reuse import PhaseReuse
from growlm.training.resume.resume_from import (
    check_fingerprint,
    describe_possible_file_change,
    describe_precision_cost,
    describe_processor_change,
    find_run_to_resume,
    restore_accelerator,
)
from growlm.training.resume.state_schema import check_state_phase, open_state, read_history_rows
from growlm.training.run_context import RunContext
from growlm.training.run_folder import (
    RUN_RECORD_FILE,
    RunFingerprint,
    RunFolder,
    check_run_dir_writable,
    create_run_folder,
    open_run_folder,
)
from growlm.training.run_setup import build_context, resolve_config


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    run_dir: Path
    summary: RunSummary


def run_plan(config: RunConfig, callbacks: Sequence[Callback] = ()) -> RunResult:
    """Run a plan, or go on with one that stopped: what the command does. Prints, and leaves the files of a run.

    Args:
        config: From `growlm.config.load_config`, or built by hand.
        callbacks: More Lightning callbacks, the same in every phase.

    Raises:
        UserError: If something asked for is wrong; nothing was written.
        GrowthError: If a growth lost something.
        NonFiniteError: If training met NaN or infinity.
        DiskError: If something could not be written.
        Interrupted: If the run was asked to stop.
    """
    requested = restore_accelerator(config)
    accelerator = resolve_accelerator(requested.trainer.accelerator, "trainer.accelerator")
    timeout = timedelta(minutes=requested.trainer.timeout_minutes)
    with ExitStack() as stack:
        requests = stack.enter_context(GracefulStop(requested.trainer.max_time))
        world = stack.enter_context(init_distributed(accelerator, timeout))
        console = ConsoleReporter(make_stdout_console(quiet=not world.is_rank0))
        stack.callback(console.close, failed=True)
        check_requirements(requested, accelerator)
        config, begun = resolve_config(
            requested,
            world,
            console,
            lambda resolved: _open_on_rank0(world, stack, lambda: _open_run_to_resume(resolved)),
        )
        context = build_context(config, requested.trainer.devices, world, console)
        _check_same_fingerprint(context)
        if begun is not None:
            check_fingerprint(config, begun, context.fingerprint)
            for note_of in (
                describe_processor_change,
                describe_precision_cost,
                describe_possible_file_change,
            ):
                if note := note_of(begun.fingerprint, context.fingerprint):
                    console.message_logged(note)
        elif config.resume is not None:
            console.console.print("No unfinished run with these settings: a new one begins")
        folder = begun or _open_on_rank0(
            world, stack, lambda: create_run_folder(context.saved_config, context.fingerprint)
        )
        assert folder is not None
        try:
            with gc_frozen(), translate_peer_errors():
                summary = _run_phases(folder, context, callbacks, console, requests)
            if world.is_rank0:
                _write_report(folder.path, console)
            return RunResult(folder.path, summary)
        except (Interrupted, RunError):
            if not (folder.resume_dir / RUN_RECORD_FILE).exists():
                raise  # it was removed
            if world.is_rank0:
                _write_report(folder.path, console)
            how = f"python -m growlm.train {shlex.quote(f'resume={folder.path}')}"
            console.console.print(f"To go on: {how}", markup=False, soft_wrap=True)
            raise


def _open_run_to_resume(config: RunConfig) -> RunFolder | None:
    """The folder of the run to go on with, locked; None for a new run, whose folder can be made."""
    stopped = find_run_to_resume(config)
    if stopped is None:
        check_run_dir_writable(config)
        return None
    return open_run_folder(stopped)


def _check_same_fingerprint(context: RunContext) -> None:
    """Check that all processes read the same: their files may be on disks of their own.

    Raises:
        RunError: In all of them, if not.
    """
    everyone = context.dist_context.all_gather(context.fingerprint)
    for rank, other in enumerate(everyone):
        if other != everyone[0]:
            raise RunError(f"process {rank} reads {other}, and process 0 {everyone[0]}")


def _open_on_rank0(
    dist_context: DistributedContext, stack: ExitStack, action: Callable[[], RunFolder | None]
) -> RunFolder | None:
    """The folder that the first process makes or opens, and locks for itself until the stack is left."""
    own: list[RunFolder] = []

    def act() -> tuple[Path, str, RunFingerprint] | None:
        folder = action()
        if folder is None:
            return None
        own.append(stack.enter_context(folder))
        return folder.path, folder.run_id, folder.fingerprint

    opened = dist_context.run_on_rank0(act)
    if opened is None:
        return None
    return own[0] if own else RunFolder(*opened, lock=None)


def _load_newest_state_on_rank0(
    folder: RunFolder, dist_context: DistributedContext
) -> tuple[ResumeState | None, list[UserError]]:
    """`RunFolder.newest_state`, which the first process finds for all."""
    found: list[tuple[ResumeState | None, list[UserError]]] = []

    def find() -> Path | None:
        found.append(folder.load_newest_state(dist_context))
        state = found[0][0]
        return None if state is None else state.folder

    path = dist_context.run_on_rank0(find)
    if found:
        return found[0]
    return (None if path is None else open_state(path, dist_context, is_checked=True)), []


def _run_phases(
    folder: RunFolder,
    context: RunContext,
    callbacks: Sequence[Callback],
    console: ConsoleReporter,
    requests: GracefulStop,
) -> RunSummary:
    config, world = context.config, context.dist_context
    own_state, damaged = _load_newest_state_on_rank0(folder, world)
    if own_state is not None:
        check_state_phase(own_state, context.plan)
    table = context.forecast.to_json(context.calibration)
    console.show_plan(table)
    console.console.print(f"Run directory {folder.path}", markup=False, soft_wrap=True)
    for error in damaged:
        text = f"warning: {error}; going on from the state before it"
        console.console.print(text, markup=False, soft_wrap=True)
    if world.is_rank0:
        write_json(folder.path / "plan.json", table["phases"])
    keys = [] if callbacks else _phase_cache_keys(context)
    everyone = BroadcastListener([console])
    failed = True
    sizes = _phase_state_sizes(context)
    with PhaseReuse(config.reuse, keys, sizes, context.plan, folder, everyone) as reuse:
        state = reuse.find_start_state(own_state, requests)
        saved = {} if state is None else state.record["run"]
        boundaries: list[BoundaryRecord] = saved.get("boundaries", [])
        history = None
        if world.is_rank0:
            passed = [boundary.to_json() for boundary in boundaries]
            history = RunHistoryWriter(folder.path, saved.get("history"), passed)
            everyone.listeners.insert(0, history)
        try:
            first_step = None if own_state is None else saved["global_step"]
            logger = None
            if history is not None:
                logger = build_logger(config, folder.path, folder.run_id, first_step)
            if history is not None and logger is not None:
                metrics = MetricLogger(logger)
                everyone.listeners.append(metrics)
                lines = read_history_rows(history.path, folder.path)
                metrics.replay(lines, boundaries, should_log=own_state is None)
            run = PhaseRunner(context, folder, everyone, history, callbacks, requests, reuse)
            if own_state is not None:
                phase, step = own_state.record["phase"], own_state.record["step"]
                everyone.run_resumed(phase, step, context.plan.get_phase(phase).num_steps)
            elif run.summary.reused is not None:
                everyone.phases_reused(run.summary.reused)
            summary = run.run(state)
            failed = False
            return summary
        finally:
            everyone.close(failed)


def _write_report(run_dir: Path, console: ConsoleReporter) -> None:
    """The run's report.html; a run does not fail for want of it."""
    path = run_dir / "report.html"
    try:
        write_report([run_dir], path)
    except (UserError, RunError) as error:
        console.message_logged(f"warning: no {path.name}: {error}")
    else:
        console.message_logged(f"Report {path}")
    if any((run_dir / "wandb").glob("offline-run-*")):
        console.message_logged(
            f"W&B was offline; to upload: wandb sync {run_dir}/wandb/offline-run-*"
        )


def _phase_state_sizes(context: RunContext) -> list[int]:
    """Bytes of the state and the artefacts after each phase."""
    artefacts, sizes = 0, []
    for cost in context.forecast.phase_forecasts:
        artefacts += cost.memory.disk
        sizes.append(cost.memory.weights + cost.memory.optimizer + artefacts)
    return sizes


def _phase_cache_keys(context: RunContext) -> list[str]:
    """None for a run with callbacks of the user's: they would miss what is not trained."""
    config = context.config
    if (
        config.reuse.phases != "always"
        or config.callbacks.extra
        or context.dist_context.world_size > 1
    ):
        return []
    files = {path.name: hash_file(path) for path in context.tokenizer_files}
    carried = {"origin": context.source_metadata, "files": files}
    return compute_phase_cache_keys(
        config, context.plan, context.machine, context.fingerprint, carried
    )
