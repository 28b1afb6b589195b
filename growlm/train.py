"""`python -m growlm.train`: run a plan, or with `-m` a sweep of them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from growlm.command import quote_free_text, run_command, swept_keys
from growlm.config.load import ROOT_NAME, config_folder, register_schema, typed_config
from growlm.config.schema import RunConfig


def main() -> None:
    """The console script."""
    sys.exit(run_command(train))


def train() -> int:
    """Let Hydra compose the config of each job from the command line, and run it.

    Returns:
        The exit code: the worst of all jobs.
    """
    sys.argv[1:] = [quote_free_text(argument) for argument in sys.argv[1:]]
    register_schema()
    codes: list[int] = []

    @hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=ROOT_NAME)
    def job(composed: DictConfig) -> None:
        codes.append(run_command(lambda: run_job(composed)))

    job()
    _tidy_failed_sweep(codes)
    return max(codes, key=lambda code: (code not in (0, 2), code), default=0)


def run_job(composed: DictConfig) -> int:
    """Check one composed config and run it."""
    config = typed_config(composed)
    from growlm.training import GrowthError, run_plan  # Lightning takes seconds to import

    try:
        run_plan(_placed(config))
    except GrowthError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    return 0


def _placed(config: RunConfig) -> RunConfig:
    """The config with the run's folder, and in a sweep its group, from what Hydra was told."""
    settings = HydraConfig.get()
    if "num" not in settings.job or OmegaConf.is_missing(settings.job, "num"):
        chosen = str(settings.run.dir)
        return config if chosen == "." or config.run_dir else replace(config, run_dir=chosen)
    sweep_dir = Path(settings.sweep.dir)
    swept = swept_keys(sys.argv[1:])
    task = [str(override) for override in settings.overrides.task]
    dials = [o.rpartition(".")[2] for o in task if o.partition("=")[0] in swept] or task
    name = "_".join([str(settings.job.num), *dials]).replace("/", "-").replace(" ", "-")
    logger = replace(config.logger, group=config.logger.group or sweep_dir.name)
    return replace(config, run_dir=str(sweep_dir / name), logger=logger)


def _tidy_failed_sweep(codes: list[int]) -> None:
    """Hydra writes multirun.yaml before the first job; where no job began, nothing should remain."""
    if not codes or set(codes) != {2} or not HydraConfig.initialized():
        return


if __name__ == "__main__":
    main()
