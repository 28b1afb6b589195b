"""Run a plan: check the config, prepare or resume the run folder, then train the phases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from lightning.pytorch import Callback

from growlm.checkpoint.resume_state import ResumeState
from growlm.checkpoint.run_record import RUN_RECORD_FILE
from growlm.config.own_classes import find_targets
from growlm.config.schema import RunConfig
from growlm.config.validation import check_before_start
from growlm.distributed.launch_environment import (
    adopt_launcher_variables,
    check_num_devices,
    describe_unused_tasks,
)
from growlm.distributed.process_group import DistributedContext
from growlm.distributed.startup import init_distributed, translate_peer_errors
from growlm.reporting.console.console_reporter import ConsoleReporter
from growlm.reporting.console.next_commands import format_resume_command, list_ways_on
from growlm.reporting.console.plain_console import is_verbose, make_stdout_console
from growlm.reporting.events import BroadcastListener
from growlm.reporting.html import write_report
from growlm.reporting.loggers.logger_factory import build_loggers
from growlm.reporting.loggers.metric_logger import MetricLogger
from growlm.reporting.provenance import record_session
from growlm.reporting.records import BoundaryRecord, RunSummary
from growlm.reporting.run_history import RunHistoryWriter, write_json
from growlm.runtime.device import resolve_accelerator
from growlm.runtime.errors import RunError, UserError
from growlm.runtime.exit_codes import print_error
from growlm.runtime.memory import gc_frozen
from growlm.runtime.output_streams import is_output_lost, output_may_be_lost
from growlm.runtime.signals import GracefulStop, Interrupted
from growlm.storage.integrity import hash_file
from growlm.training.callbacks.replica_check import GrowthError
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
from growlm.training.resume.run_extension import extend_run, is_extension
from growlm.training.resume.state_schema import check_state_phase, open_state, read_history_rows
from growlm.training.run_context import RunContext
from growlm.training.run_folder import (
    RunFingerprint,
    RunFolder,
    check_run_dir_writable,
    create_run_folder,
    describe_other_run_dir,
    open_run_folder,
)
from growlm.training.run_setup import build_context, resolve_config


@dataclass(frozen=True)
class RunResult:
    """The folder, summary and config of a finished run."""

    run_dir: Path
    summary: RunSummary
    config: RunConfig
    """Config with all settings resolved, as in the run's `config.yaml`."""


def run_plan(config: RunConfig, callbacks: Sequence[Callback] = ()) -> RunResult:
    """Run a plan, or resume one that stopped, as `growlm.train` does; print progress and write the run folder.

    Args:
        config: Config from `growlm.config.load_config`, or built in code.
        callbacks: Additional Lightning callbacks, used in every phase.

    Raises:
        UserError: If a setting is invalid; nothing was written.
        GrowthError: If a growth failed its checks.
        NonFiniteError: If the loss, a weight or a gradient became NaN or infinite.
        DiskError: If a file could not be written.
        Interrupted: If the run was asked to stop.
    """
    adopt_launcher_variables()
    check_before_start(config)
    check_num_devices(config.trainer.devices)
    requested = restore_accelerator(config)
    accelerator = resolve_accelerator(requested.trainer.accelerator, "trainer.accelerator")
    timeout = timedelta(minutes=requested.trainer.timeout_minutes)
    with ExitStack() as stack:
        stack.enter_context(output_may_be_lost())
        stop_requests = stack.enter_context(GracefulStop(requested.trainer.max_time))
        dist_context = stack.enter_context(init_distributed(accelerator, timeout))
        stdout = make_stdout_console(quiet=not dist_context.is_rank0)
        console = ConsoleReporter(stdout, verbose=is_verbose())
        stack.callback(console.close, failed=True)
        console.progress_display.watch()
        if requested.trainer.devices is None and (note := describe_unused_tasks()):
            console.message_logged(note)
        check_requirements(requested, accelerator)
        config, resumed = resolve_config(
            requested,
            dist_context,
            console,
            lambda resolved: _open_on_rank0(
                dist_context, stack, lambda: _open_run_to_resume(resolved)
            ),
        )
        context = build_context(config, requested.trainer.devices, dist_context, console, callbacks)
        _check_same_fingerprint(context)
        if resumed is not None:
            check_fingerprint(config, resumed, context.fingerprint)
            for describe in (
                describe_processor_change,
                describe_precision_cost,
                describe_possible_file_change,
            ):
                if note := describe(resumed.fingerprint, context.fingerprint):
                    console.message_logged(note)
        elif config.resume is not None:
            console.console.print("No unfinished run matches; starting a new one.")
        folder = resumed or _open_on_rank0(
            dist_context,
            stack,
            lambda: create_run_folder(context.saved_config, context.fingerprint),
        )
        assert folder is not None
        if resumed is None and (note := describe_other_run_dir(config, folder.path)):
            console.message_logged(note)
        try:
            with gc_frozen(), translate_peer_errors():
                summary = _run_phases(folder, context, callbacks, console, stop_requests)
            if dist_context.is_rank0:
                _write_report(folder.path, console)
            return RunResult(folder.path, summary, context.saved_config)
        except (Interrupted, RunError) as error:
            if not (folder.resume_dir / RUN_RECORD_FILE).exists():
                raise  # the run folder was removed, so it cannot be resumed
            if dist_context.is_rank0:
                _write_report(folder.path, console)
            lines = [f"To resume: {format_resume_command(folder.path, context.config)}"]
            if isinstance(error, GrowthError) and dist_context.is_rank0:
                lines = list_ways_on(folder.path, lines[0])
            for line in lines:
                console.console.print(line, markup=False, soft_wrap=True)
                if is_output_lost() and dist_context.is_rank0:
                    print_error(line)
            raise


def _open_run_to_resume(config: RunConfig) -> RunFolder | None:
    """Open and lock the run to resume; return None for a new run, once its folder is known to be writable."""
    stopped = find_run_to_resume(config)
    if stopped is None:
        check_run_dir_writable(config)
        return None
    return open_run_folder(stopped, may_have_finished=is_extension(stopped, config))


def _check_same_fingerprint(context: RunContext) -> None:
    """Check that all ranks read the same data and weights, since each machine may read its own disk.

    Raises:
        RunError: On all ranks, if they do not.
    """
    fingerprints = context.dist_context.all_gather(context.fingerprint)
    for rank, fingerprint in enumerate(fingerprints):
        if fingerprint != fingerprints[0]:
            raise RunError(
                f"rank {rank} reads other inputs than rank 0: {fingerprint}; rank 0: {fingerprints[0]}"
            )


def _open_on_rank0(
    dist_context: DistributedContext, stack: ExitStack, action: Callable[[], RunFolder | None]
) -> RunFolder | None:
    """Let rank 0 create or open a run folder, locked until the stack exits, and return it on all ranks."""
    opened_here: list[RunFolder] = []  # filled on rank 0 only

    def open_folder() -> tuple[Path, str, RunFingerprint] | None:
        folder = action()
        if folder is None:
            return None
        opened_here.append(stack.enter_context(folder))
        return folder.path, folder.run_id, folder.fingerprint

    opened = dist_context.run_on_rank0(open_folder)
    if opened is None:
        return None
    return opened_here[0] if opened_here else RunFolder(*opened, lock=None)


def _load_newest_state_on_rank0(
    folder: RunFolder, context: RunContext
) -> tuple[ResumeState | None, list[UserError], list[str]]:
    """Load the newest intact state, which rank 0 finds and checks for all ranks.

    A run that is to have other lengths gets them now: the first thing that is written.

    Returns:
        The state, if there is one; errors of newer, damaged ones; notes on the run's new lengths.
    """
    dist_context = context.dist_context
    found: list[tuple[ResumeState | None, list[UserError], list[str]]] = []

    def find() -> Path | None:
        state, damaged = folder.load_newest_state(dist_context)
        resumes = context.config.resume is not None
        notes = extend_run(folder, context.config, context.plan, state) if resumes else []
        found.append((state, damaged, notes))
        return None if state is None else state.folder

    path = dist_context.run_on_rank0(find)
    if found:
        return found[0]
    return (None if path is None else open_state(path, dist_context, is_checked=True)), [], []


def _run_phases(
    folder: RunFolder,
    context: RunContext,
    callbacks: Sequence[Callback],
    console: ConsoleReporter,
    stop_requests: GracefulStop,
) -> RunSummary:
    config, dist_context = context.config, context.dist_context
    own_state, damaged, notes = _load_newest_state_on_rank0(folder, context)
    if own_state is not None:
        check_state_phase(own_state, context.plan)
    forecast = context.forecast.to_json(context.calibration)
    console.show_plan(forecast)
    console.console.print(f"Run directory {folder.path}", markup=False, soft_wrap=True)
    for error in damaged:
        text = f"warning: {error}; resuming from the state before it"
        console.console.print(text, markup=False, soft_wrap=True)
    for note in notes:
        console.message_logged(note)
    if dist_context.is_rank0:
        write_json(folder.path / "plan.json", forecast["phases"])
        processor = context.fingerprint.processor or context.machine.accelerator
        record_session(folder.path, processor, dist_context.world_size)
    cache_keys = [] if callbacks else _phase_cache_keys(context)
    broadcast = BroadcastListener([console])
    failed = True
    sizes = _phase_state_sizes(context)
    with PhaseReuse(config.reuse, cache_keys, sizes, context.plan, folder, broadcast) as reuse:
        state = reuse.find_start_state(own_state, stop_requests)
        saved = {} if state is None else state.record["run"]
        boundaries: list[BoundaryRecord] = saved.get("boundaries", [])
        history = None
        if dist_context.is_rank0:
            passed = [boundary.to_json() for boundary in boundaries]
            history = RunHistoryWriter(folder.path, saved.get("history"), passed)
            broadcast.listeners.insert(0, history)
        try:
            first_step = None if own_state is None else saved["global_step"]
            loggers = []
            if history is not None:
                loggers = build_loggers(config, folder.path, folder.run_id, first_step)
            metrics = [MetricLogger(logger) for logger in loggers]
            for logger in metrics:
                assert history is not None
                broadcast.listeners.append(logger)
                lines = read_history_rows(history.path, folder.path)
                logger.replay(lines, boundaries, should_log=own_state is None)
            run = PhaseRunner(
                context, folder, broadcast, history, callbacks, stop_requests, reuse, metrics
            )
            if own_state is not None:
                phase, step = own_state.record["phase"], own_state.record["step"]
                broadcast.run_resumed(phase, step, context.plan.get_phase(phase).num_steps)
            elif run.summary.reused is not None:
                broadcast.phases_reused(run.summary.reused)
            summary = run.run(state)
            failed = False
            return summary
        finally:
            broadcast.close(failed)


def _write_report(run_dir: Path, console: ConsoleReporter) -> None:
    """Write the run's report.html; if that fails, only warn."""
    path = run_dir / "report.html"
    try:
        write_report([run_dir], path)
    except (UserError, RunError) as error:
        console.message_logged(f"warning: cannot write {path.name}: {error}")
    else:
        console.message_logged(f"Report {path}")
    if any((run_dir / "wandb").glob("offline-run-*")):
        upload = f"wandb sync {run_dir}/wandb/offline-run-*"
        console.console.print(f"W&B was offline; to upload: {upload}", markup=False, soft_wrap=True)


def _phase_state_sizes(context: RunContext) -> list[int]:
    """Return the bytes of the resume state and checkpoints after each phase."""
    checkpoint_bytes, sizes = 0, []
    for cost in context.forecast.phase_forecasts:
        checkpoint_bytes += cost.memory.disk
        sizes.append(cost.memory.weights + cost.memory.optimizer + checkpoint_bytes)
    return sizes


def _phase_cache_keys(context: RunContext) -> list[str]:
    """Return the cache keys; empty with classes of the user's own, whose code no key covers."""
    config = context.config
    if (
        config.reuse.phases != "always"
        or any(find_targets(asdict(config)))  # callbacks would also miss the reused phases
        or context.dist_context.world_size > 1
    ):
        return []
    files = {path.name: hash_file(path) for path in context.tokenizer_files}
    checkpoint_metadata = {"origin": context.source_metadata, "files": files}
    return compute_phase_cache_keys(
        config, context.plan, context.machine, context.fingerprint, checkpoint_metadata
    )
