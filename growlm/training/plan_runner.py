"""Running a plan: check, read, find where to begin, then let the phases run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from lightning.pytorch import Callback

from growlm.checkpoint.resume_state import RunState
from growlm.config.schema import RunConfig
from growlm.distributed.process_group import World
from growlm.distributed.startup import join_world, lost_in_words
from growlm.reporting.console.console_reporter import ConsoleReporter
from growlm.reporting.console.plain_console import plain_console
from growlm.reporting.events import Broadcast
from growlm.reporting.html import write_report
from growlm.reporting.loggers.logger_factory import build_logger
from growlm.reporting.loggers.metric_logger import MetricLogger
from growlm.reporting.records import BoundaryRecord, RunSummary
from growlm.reporting.run_history import HistoryFiles, write_json
from growlm.runtime.device import pick_accelerator
from growlm.runtime.errors import RunError, UserError
from growlm.runtime.memory import older_objects_left_alone
from growlm.runtime.signals import Interrupted, StopRequests
from growlm.storage.integrity import file_digest
from growlm.training.phase_runner import PhaseRunner
from growlm.training.requirements import check_requirements
from growlm.training.resume.fingerprint import phase_keys
from growlm.training.resume.phase_reuse import PhaseReuse
from growlm.training.resume.resume_from import (
    check_circumstances,
    files_note,
    precision_note,
    processor_note,
    run_to_resume,
    with_begun_accelerator,
)
from growlm.training.resume.state_schema import check_phase, open_state, saved_lines
from growlm.training.run_context import RunContext
from growlm.training.run_folder import (
    RECORD,
    Circumstances,
    RunFolder,
    check_place,
    make_run_folder,
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
    requested = with_begun_accelerator(config)
    accelerator = pick_accelerator(requested.trainer.accelerator, "trainer.accelerator")
    timeout = timedelta(minutes=requested.trainer.timeout_minutes)
    with ExitStack() as stack:
        requests = stack.enter_context(StopRequests(requested.trainer.max_time))
        world = stack.enter_context(join_world(accelerator, timeout))
        console = ConsoleReporter(plain_console(quiet=not world.is_first))
        stack.callback(console.close, failed=True)
        check_requirements(requested, accelerator)
        config, begun = resolve_config(
            requested,
            world,
            console,
            lambda resolved: _opened_by_first(world, stack, lambda: _run_begun(resolved)),
        )
        context = build_context(config, requested.trainer.devices, world, console)
        _check_same_circumstances(context)
        if begun is not None:
            check_circumstances(config, begun, context.circumstances)
            for note_of in (processor_note, precision_note, files_note):
                if note := note_of(begun.circumstances, context.circumstances):
                    console.noted(note)
        elif config.resume is not None:
            console.console.print("No unfinished run with these settings: a new one begins")
        folder = begun or _opened_by_first(
            world, stack, lambda: make_run_folder(context.saved_config, context.circumstances)
        )
        assert folder is not None
        try:
            with older_objects_left_alone(), lost_in_words():
                summary = _run_in(folder, context, callbacks, console, requests)
            if world.is_first:
                _write_report(folder.path, console)
            return RunResult(folder.path, summary)
        except (Interrupted, RunError):
            if not (folder.resume_dir / RECORD).exists():
                raise  # it was removed
            if world.is_first:
                _write_report(folder.path, console)
            how = f"python -m growlm.train {shlex.quote(f'resume={folder.path}')}"
            console.console.print(f"To go on: {how}", markup=False, soft_wrap=True)
            raise


def _run_begun(config: RunConfig) -> RunFolder | None:
    """The folder of the run to go on with, locked; None for a new run, whose folder can be made."""
    stopped = run_to_resume(config)
    if stopped is None:
        check_place(config)
        return None
    return open_run_folder(stopped)


def _check_same_circumstances(context: RunContext) -> None:
    """Check that all processes read the same: their files may be on disks of their own.

    Raises:
        RunError: In all of them, if not.
    """
    everyone = context.world.gather(context.circumstances)
    for rank, other in enumerate(everyone):
        if other != everyone[0]:
            raise RunError(f"process {rank} reads {other}, and process 0 {everyone[0]}")


def _opened_by_first(
    world: World, stack: ExitStack, action: Callable[[], RunFolder | None]
) -> RunFolder | None:
    """The folder that the first process makes or opens, and locks for itself until the stack is left."""
    own: list[RunFolder] = []

    def act() -> tuple[Path, str, Circumstances] | None:
        folder = action()
        if folder is None:
            return None
        own.append(stack.enter_context(folder))
        return folder.path, folder.run_id, folder.circumstances

    opened = world.first(act)
    if opened is None:
        return None
    return own[0] if own else RunFolder(*opened, lock=None)


def _newest_state(folder: RunFolder, world: World) -> tuple[RunState | None, list[UserError]]:
    """`RunFolder.newest_state`, which the first process finds for all."""
    found: list[tuple[RunState | None, list[UserError]]] = []

    def find() -> Path | None:
        found.append(folder.newest_state(world))
        state = found[0][0]
        return None if state is None else state.folder

    path = world.first(find)
    if found:
        return found[0]
    return (None if path is None else open_state(path, world, is_checked=True)), []


def _run_in(
    folder: RunFolder,
    context: RunContext,
    callbacks: Sequence[Callback],
    console: ConsoleReporter,
    requests: StopRequests,
) -> RunSummary:
    config, world = context.config, context.world
    own_state, damaged = _newest_state(folder, world)
    if own_state is not None:
        check_phase(own_state, context.plan)
    table = context.forecast.to_json(context.speed)
    console.run_planned(table)
    console.console.print(f"Run directory {folder.path}", markup=False, soft_wrap=True)
    for error in damaged:
        text = f"warning: {error}; going on from the state before it"
        console.console.print(text, markup=False, soft_wrap=True)
    if world.is_first:
        write_json(folder.path / "plan.json", table["phases"])
    keys = [] if callbacks else _keys_to_reuse(context)
    everyone = Broadcast([console])
    failed = True
    sizes = _sizes_to_keep(context)
    with PhaseReuse(config.reuse, keys, sizes, context.plan, folder, everyone) as reuse:
        state = reuse.begin(own_state, requests)
        saved = {} if state is None else state.record["run"]
        boundaries: list[BoundaryRecord] = saved.get("boundaries", [])
        history = None
        if world.is_first:
            passed = [boundary.to_json() for boundary in boundaries]
            history = HistoryFiles(folder.path, saved.get("history"), passed)
            everyone.listeners.insert(0, history)
        try:
            first_step = None if own_state is None else saved["global_step"]
            logger = None
            if history is not None:
                logger = build_logger(config, folder.path, folder.run_id, first_step)
            if history is not None and logger is not None:
                metrics = MetricLogger(logger)
                everyone.listeners.append(metrics)
                lines = saved_lines(history.path, folder.path)
                metrics.replay(lines, boundaries, tell=own_state is None)
            run = PhaseRunner(context, folder, everyone, history, callbacks, requests, reuse)
            if own_state is not None:
                phase, step = own_state.record["phase"], own_state.record["step"]
                everyone.run_resumed(phase, step, context.plan.phase(phase).steps)
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
        console.noted(f"warning: no {path.name}: {error}")
    else:
        console.noted(f"Report {path}")
    if any((run_dir / "wandb").glob("offline-run-*")):
        console.noted(f"W&B was offline; to upload: wandb sync {run_dir}/wandb/offline-run-*")


def _sizes_to_keep(context: RunContext) -> list[int]:
    """Bytes of the state and the artefacts after each phase."""
    artefacts, sizes = 0, []
    for cost in context.forecast.costs:
        artefacts += cost.footprint.disk
        sizes.append(cost.footprint.weights + cost.footprint.optimizer + artefacts)
    return sizes


def _keys_to_reuse(context: RunContext) -> list[str]:
    """None for a run with callbacks of the user's: they would miss what is not trained."""
    config = context.config
    if config.reuse.phases != "always" or config.callbacks.extra or context.world.size > 1:
        return []
    files = {path.name: file_digest(path) for path in context.tokenizer_files}
    carried = {"origin": context.origin, "files": files}
    return phase_keys(config, context.plan, context.machine, context.circumstances, carried)
