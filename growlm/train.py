"""`python -m growlm.train`: run a plan, or with `-m` a sweep of them."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import hydra
from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from growlm.command import first_values, quote_free_text, run_command, swept_keys
from growlm.config.load import ROOT_NAME, config_folder, register_schema, typed_config
from growlm.config.schema import RunConfig
from growlm.errors import UserError


def main() -> None:
    """The console script."""
    sys.exit(run_command(train))


def train() -> int:
    """Let Hydra compose the config of each job from the command line, and run it.

    Returns:
        The exit code: 130 or 143 after a signal, else 1 if any job failed, else 2 if any asked for something
        wrong, else 0.
    """
    sys.argv[1:] = [quote_free_text(argument) for argument in sys.argv[1:]]
    register_schema()
    codes: list[int] = []
    sweep_folder: Path | None = None

    @hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=ROOT_NAME)
    def job(composed: DictConfig) -> None:
        nonlocal sweep_folder
        settings = HydraConfig.get()
        if settings.mode is RunMode.MULTIRUN and sweep_folder is None:
            sweep_folder = Path(
                settings.sweep.dir
            )  # the first job's: the plan's name may be swept too
        # An exception that leaves a job would end the sweep.
        codes.append(run_command(lambda: run_job(composed, sweep_folder)))
        if codes[-1] > 128:
            raise KeyboardInterrupt  # a signal is meant for the sweep, not for one job

    if {"-m", "--multirun"} & set(sys.argv[1:]):
        _compose_first_job()
    try:
        job()
    except KeyboardInterrupt:
        return codes[-1] if codes and codes[-1] > 128 else 130
    if set(codes) == {2} and sweep_folder:
        _remove_empty_sweep(sweep_folder)
    return min((code for code in codes if code), default=0)


def _compose_first_job() -> None:
    """Find a misspelt key before Hydra writes the sweep's multirun.yaml.

    Raises:
        HydraException: And its like, as composing does.
    """
    overrides = [argument for argument in sys.argv[1:] if "=" in argument]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        compose(ROOT_NAME, overrides=first_values(overrides))


def run_job(composed: DictConfig, sweep_folder: Path | None) -> int:
    """Check one composed config and run it, in a sweep inside the sweep's folder."""
    config = typed_config(composed)
    if sweep_folder is not None and config.resume is not None:
        raise UserError("resume", config.resume, "is for a single run, not for a sweep")
    # Lightning takes seconds to import.
    from growlm.training import Interrupted, run_plan
    from growlm.training.resuming import settings_of

    try:
        settings = HydraConfig.get()
        config = settings_of(config, settings.overrides.task)
        run_plan(_placed(config, settings, sweep_folder))
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        return interrupted.code
    return 0


def _placed(config: RunConfig, hydra_settings: HydraConf, sweep_folder: Path | None) -> RunConfig:
    """The config with the run's folder, and in a sweep its group, from what Hydra was told."""
    if sweep_folder is None:
        chosen = str(hydra_settings.run.dir)
        return config if chosen == "." or config.run_dir else replace(config, run_dir=chosen)
    if config.run_dir:
        raise UserError(
            "run_dir", config.run_dir, "a sweep names its runs itself; use hydra.sweep.dir"
        )
    swept = swept_keys(sys.argv[1:])
    task = [str(override).partition("=") for override in hydra_settings.overrides.task]
    dials = [f"{key.rpartition('.')[2]}={value}" for key, _, value in task if key in swept]
    name = re.sub(r"[^\w.=-]", "-", "_".join([str(hydra_settings.job.num), *dials]))
    logger = replace(config.logger, group=config.logger.group or sweep_folder.name)
    return replace(config, run_dir=str(sweep_folder / name), logger=logger)


def _remove_empty_sweep(folder: Path) -> None:
    """Hydra writes multirun.yaml before the first job; where no job began, nothing should remain."""
    if [path.name for path in folder.iterdir()] != ["multirun.yaml"]:
        return
    (folder / "multirun.yaml").unlink()
    is_default = folder.parent.parent == Path("outputs")
    for path in (folder, folder.parent, folder.parent.parent) if is_default else (folder,):
        try:
            path.rmdir()
        except OSError:  # not empty
            return


if __name__ == "__main__":
    main()
