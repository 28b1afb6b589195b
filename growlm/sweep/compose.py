"""Which jobs a sweep's command makes, each composed before the first one begins."""

from __future__ import annotations

import argparse
import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from growlm.config.load import (
    ROOT_CONFIG_NAME,
    get_config_folder,
    register_schema,
    to_valid_run_config,
)
from growlm.reporting.reading.sweep_record import WRONG, SweepRecord
from growlm.runtime.errors import UserError
from growlm.sweep.job_devices import reject_multi_device_job
from growlm.sweep.sweep_folder import make_job

BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
ANNOUNCE_MIN_JOBS = 20
"""Jobs that it takes seconds to compose."""


def compose_jobs(arguments: Sequence[str]) -> tuple[DictConfig, list[Override], SweepRecord]:
    """Compose every job, so that a misspelt key or group is found before the first one begins.

    Args:
        arguments: Of the command, free text quoted.

    Returns:
        The first job's config with Hydra's own, the overrides, and the sweep before its first job. It has no jobs
        yet where its sweeper is not Hydra's own, which decides on the next ones as it goes; those that ask for
        something wrong say so already.

    Raises:
        UserError: If a job asks for several devices.
        HydraException: And its like, for the first thing that is wrong.
    """
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    known.add_argument("--config-dir", "-cd")
    known.add_argument("--config-name", "-cn", default=ROOT_CONFIG_NAME)
    known.add_argument("overrides", nargs="*")
    options, _ = known.parse_known_args(list(arguments))
    register_schema()
    with initialize_config_dir(str(get_config_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(options.overrides)
        for_hydra = [str(o.input_line) for o in parsed if _is_hydra_override(o)]
        own = [o for o in parsed if not _is_hydra_override(o)]
        if options.config_dir:
            folder = Path(options.config_dir).absolute()
            for_hydra.append(f"hydra.searchpath=['file://{folder}']")

        def composed(job: Sequence[str]) -> DictConfig:
            overrides = [*job, *for_hydra]
            return compose(options.config_name, overrides=overrides, return_hydra_config=True)

        constants = [o for o in own if not o.is_sweep_override()]
        sweeper = composed([str(o.input_line) for o in constants]).hydra.sweeper
        is_basic = sweeper._target_ == BASIC_SWEEPER and not sweeper.params
        (jobs,) = BasicSweeper.split_arguments(own if is_basic else constants, None)
        if len(jobs) > ANNOUNCE_MIN_JOBS:
            print(f"composing {len(jobs)} jobs ...")
        configs = [composed(job) for job in jobs]
    for job, config in zip(jobs, configs, strict=True):
        reject_multi_device_job(job, config, options.config_dir)
    sweep = SweepRecord(
        name=str(configs[0].name),
        command=[str(o.input_line) for o in own],
        constants=BasicSweeper.split_arguments(constants, None)[0][0],
        config=_hash_configs(configs),
    )
    if is_basic:
        sweep.jobs = [make_job(i, job, sweep.constants) for i, job in enumerate(jobs)]
        for entry, config in zip(sweep.jobs, configs, strict=True):
            own_config = copy.deepcopy(config)
            with open_dict(own_config):
                del own_config["hydra"]
            try:
                to_valid_run_config(own_config)
            except UserError as error:
                entry.status, entry.code, entry.message = WRONG, 2, str(error)
    return configs[0], parsed, sweep


def _hash_configs(configs: Sequence[DictConfig]) -> str:
    digest = hashlib.sha256()
    for config in configs:
        content = OmegaConf.to_container(config, resolve=False)
        assert isinstance(content, dict)
        del content["hydra"]
        digest.update(OmegaConf.to_yaml(OmegaConf.create(content), sort_keys=True).encode())
    return digest.hexdigest()


def _is_hydra_override(override: Override) -> bool:
    return override.key_or_group.split(".")[0].split("/")[0] == "hydra"
