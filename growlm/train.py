"""`python -m growlm.train`: run a plan, or with `-m` a sweep of them."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from growlm import __version__
from growlm.cli.hydra_command import quote_free_text, run_command
from growlm.config.load import (
    ROOT_NAME,
    config_folder,
    naming_set_keys,
    register_schema,
    typed_config,
)
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import (
    is_first_process,
    is_one_of_several,
    print_error,
    run_as_program,
)
from growlm.sweep.sweep_command import run_sweep


def main() -> None:
    """Run the command; exit by `sys.exit`."""
    sys.exit(run_command(train))


def program() -> NoReturn:
    """Run the command as a console script."""
    run_as_program(main)


def train() -> int:
    """Let Hydra compose the config from the command line, and run it; the exit code."""
    given = sys.argv[1:]
    if "--version" in given:  # Hydra's own would name Hydra's
        print(f"growlm {__version__}")
        return 0
    sys.argv[1:] = [quote_free_text(argument) for argument in given]
    register_schema()
    if {"-m", "--multirun"} & set(sys.argv[1:]):
        return run_sweep(sys.argv[1:])
    code = 0

    @hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=ROOT_NAME)
    def job(composed: DictConfig) -> None:
        nonlocal code
        code = run_command(
            lambda: run_job(composed, given)
        )  # Hydra prints lines of its own about what leaves a job

    try:
        job()
    except HydraException:
        raise  # some of them are an OSError too
    except OSError as error:  # Hydra's: it makes the folder before the job begins
        allowed = f"cannot be made: {error.strerror}"
        raise UserError("hydra.run.dir", error.filename, allowed) from error
    return code


def run_job(composed: DictConfig, given: list[str]) -> int:
    """Check a composed config and run it; the exit code.

    Args:
        composed: By Hydra.
        given: The command line that it was composed of.
    """
    config = typed_config(composed)
    # Lightning takes seconds to import.
    from growlm.config.validation import check_config
    from growlm.distributed.launcher import launch
    from growlm.runtime.device import pick_accelerator
    from growlm.training import Interrupted, run_plan
    from growlm.training.requirements import check_requirements
    from growlm.training.resume.resume_from import settings_of

    settings = HydraConfig.get()
    try:
        config = settings_of(config, settings.overrides.task)
        if (chosen := str(settings.run.dir)) != "." and config.run_dir is None:
            config = replace(config, run_dir=chosen)
        devices = config.trainer.devices or 1
        if devices > 1 and not is_one_of_several():
            with naming_set_keys(composed):
                check_config(config)
            accelerator = pick_accelerator(config.trainer.accelerator, "trainer.accelerator")
            check_requirements(config, accelerator)
            return launch("growlm.train", given, devices)
        with naming_set_keys(composed):
            run_plan(config)
    except Interrupted as interrupted:
        if is_first_process():
            print_error(str(interrupted))
        return interrupted.code
    return 0


if __name__ == "__main__":
    program()
