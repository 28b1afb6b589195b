"""Run `python -m growlm.train`: train a plan, resume a run, or with `-m` run a sweep."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from growlm import __version__
from growlm.cli.free_text import quote_free_texts
from growlm.cli.hydra_command import run_command, split_hydra_options
from growlm.cli.train_options import (
    MULTIRUN,
    TrainOptions,
    check_hydra_overrides,
    check_sweep_overrides,
    parse_train_options,
)
from growlm.config.composing.composition import complete_phases, find_unused_settings
from growlm.config.composing.unread_files import UNREADABLE
from growlm.config.config_dir import OPTION as CONFIG_DIR_OPTION
from growlm.config.config_dir import check_config_dir
from growlm.config.load import (
    ROOT_CONFIG_NAME,
    compose_run_config,
    get_config_folder,
    register_schema,
    to_run_config,
    trace_interpolated_keys,
    translate_overrides,
)
from growlm.distributed.launch_environment import adopt_launcher_variables
from growlm.reporting.console.plain_console import make_stdout_console, verbose_output
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import (
    check_rank_variables,
    is_distributed,
    is_rank0_process,
    print_error,
    run_main_and_exit,
)
from growlm.runtime.output_streams import output_may_be_lost
from growlm.sweep.compose import asks_for_sweep_in_file
from growlm.sweep.sweep_command import run_sweep


def main() -> None:
    """Run the command; exit by `sys.exit`."""
    sys.exit(run_command(train))


def run_and_exit() -> NoReturn:
    """Run the command as a console script."""
    run_main_and_exit(main)


def train() -> int:
    """Compose the config from the command line with Hydra, run it, and return the exit code."""
    if "--version" in sys.argv[1:]:  # Hydra would print its own version
        print(f"growlm {__version__}")
        return 0
    check_rank_variables()
    adopt_launcher_variables()
    options = parse_train_options(sys.argv[1:])
    check_hydra_overrides(options)
    with verbose_output(options.is_verbose):
        return _train(options)


def _train(options: TrainOptions) -> int:
    """Compose and run what the options ask for, and return the exit code."""
    if CONFIG_DIR_OPTION in options.given:
        config_dir = Path(options.given[CONFIG_DIR_OPTION]).expanduser().absolute()
        check_config_dir(config_dir)
        options.given[CONFIG_DIR_OPTION] = str(config_dir)
    options = replace(options, overrides=translate_overrides(options.overrides))
    register_schema()
    if not options.is_sweep and options.runs and asks_for_sweep_in_file(options):
        options.given[MULTIRUN] = ""
    arguments = options.to_arguments()
    sys.argv[1:] = quote_free_texts(arguments, is_sweep=options.is_sweep)
    if options.is_sweep:
        with output_may_be_lost():
            return run_sweep(sys.argv[1:])
    code = 0
    failure: Exception | None = None

    @hydra.main(
        version_base="1.3", config_path=str(get_config_folder()), config_name=ROOT_CONFIG_NAME
    )
    def job(composed: DictConfig) -> None:
        nonlocal code, failure
        try:
            with output_may_be_lost():
                code = run_job(composed, arguments)
        except Exception as error:  # Hydra prints lines of its own about any that leave the job
            failure = error

    try:
        job()
    except SystemExit as ended:
        if "--package" in options.given and ended.code:
            return 2  # Hydra has printed that there is no such key
        raise
    except (HydraException, *UNREADABLE, OSError) as error:
        folder, name, overrides = split_hydra_options(sys.argv[1:])
        compose_run_config(overrides, folder, name)  # raises what growlm has to say about it
        if not isinstance(error, OSError) or error.filename is None:
            raise
        # Hydra creates the run folder before the job starts.
        reason = f"cannot be created: {error.strerror}"
        raise UserError("hydra.run.dir", error.filename, reason) from error
    if failure is not None:
        raise failure
    return code


def run_job(composed: DictConfig, arguments: list[str]) -> int:
    """Validate a composed config, run it, and return the exit code.

    Args:
        composed: Config composed by Hydra.
        arguments: Command-line arguments that it was composed from.
    """
    settings = HydraConfig.get()
    overrides = [*settings.overrides.hydra, *settings.overrides.task]
    check_sweep_overrides(overrides)
    complete_phases(composed, overrides, settings.job.config_name)
    if unused := find_unused_settings(composed, overrides, settings.job.config_name):
        raise unused[0]
    config = to_run_config(composed)
    # Imported only after the config is valid so far: Lightning takes seconds to import.
    from growlm.config.composing.resumed_config import (
        explain_chosen_groups,
        resolve_resume_config,
    )
    from growlm.config.validation import check_config
    from growlm.distributed.launcher import launch_processes
    from growlm.reporting.console.next_commands import print_next_commands
    from growlm.runtime.device import resolve_accelerator
    from growlm.training import Interrupted, run_plan
    from growlm.training.requirements import check_requirements
    from growlm.training.resume.resume_from import OtherSettingsError
    from growlm.training.resume.run_extension import with_written_length

    try:
        config = resolve_resume_config(config, settings.overrides.task)
        if (chosen := str(settings.run.dir)) != "." and config.run_dir is None:
            config = replace(config, run_dir=chosen)
        devices = config.trainer.devices or 1
        if devices > 1 and not is_distributed():
            with trace_interpolated_keys(composed):
                check_config(config)
            accelerator = resolve_accelerator(config.trainer.accelerator, "trainer.accelerator")
            check_requirements(config, accelerator)
            return launch_processes("growlm.train", arguments, devices)
        with trace_interpolated_keys(composed):
            result = run_plan(config)
        if is_rank0_process():
            print_next_commands(make_stdout_console(), result.run_dir, result.config)
    except OtherSettingsError as error:
        raise explain_chosen_groups(error, settings.overrides.task) from error
    except UserError as error:
        raise with_written_length(error, settings.overrides.task) from error
    except Interrupted as interrupted:
        if is_rank0_process():
            print_error(str(interrupted))
        return interrupted.code
    return 0


if __name__ == "__main__":
    run_and_exit()
