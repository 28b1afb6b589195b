"""`python -m growlm.train`: run a plan, or with `-m` a sweep of them."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from growlm.command import quote_free_text, run_command, swept_keys
from growlm.config.load import ROOT_NAME, config_folder, register_schema, typed_config
from growlm.config.schema import RunConfig


def main() -> None:
    """The console script."""
    sys.exit(run_command(train))


def train() -> int:
    """Let Hydra compose the config of each job from the command line, and run it.

    Returns:
        The exit code: 1 if any job failed, else 2 if any asked for something wrong, else 0.
    """
    sys.argv[1:] = [quote_free_text(argument) for argument in sys.argv[1:]]
    register_schema()
    codes: list[int] = []
    sweep_folders: set[Path] = set()

    @hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=ROOT_NAME)
    def job(composed: DictConfig) -> None:
        settings = HydraConfig.get()
        if settings.mode is RunMode.MULTIRUN:
            sweep_folders.add(Path(settings.sweep.dir))
        # An exception that leaves a job would end the sweep.
        codes.append(run_command(lambda: run_job(composed)))

    job()
    if set(codes) == {2}:
        for folder in sweep_folders:
            _remove_empty_sweep(folder)
    return 130 if 130 in codes else min((code for code in codes if code), default=0)


def run_job(composed: DictConfig) -> int:
    """Check one composed config and run it."""
    config = typed_config(composed)
    from growlm.training import GrowthError, run_plan  # Lightning takes seconds to import

    try:
        run_plan(_placed(config, HydraConfig.get()))
    except GrowthError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    return 0


def _placed(config: RunConfig, hydra_settings: HydraConf) -> RunConfig:
    """The config with the run's folder, and in a sweep its group, from what Hydra was told."""
    if hydra_settings.mode is not RunMode.MULTIRUN:
        chosen = str(hydra_settings.run.dir)
        return config if chosen == "." or config.run_dir else replace(config, run_dir=chosen)
    sweep_dir = Path(hydra_settings.sweep.dir)
    swept = swept_keys(sys.argv[1:])
    task = [str(override).partition("=") for override in hydra_settings.overrides.task]
    dials = [f"{key.rpartition('.')[2]}={value}" for key, _, value in task if key in swept]
    name = re.sub(r"[^\w.=-]", "-", "_".join([str(hydra_settings.job.num), *dials]))
    logger = replace(config.logger, group=config.logger.group or sweep_dir.name)
    return replace(config, run_dir=str(sweep_dir / name), logger=logger)


def _remove_empty_sweep(folder: Path) -> None:
    """Hydra writes multirun.yaml before the first job; where no job began, nothing should remain."""
    (folder / "multirun.yaml").unlink(missing_ok=True)
    for path in (folder, *folder.parents[:2]):
        try:
            path.rmdir()
        except OSError:  # not empty
            return


if __name__ == "__main__":
    main()
