"""Compose and check all jobs of a sweep before the first one starts."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from growlm.cli.free_text import quote_free_texts
from growlm.cli.hydra_command import split_hydra_options
from growlm.cli.train_options import TrainOptions
from growlm.config.composing.composition import (
    complete_phases,
    explain_composition_error,
    find_unused_settings,
)
from growlm.config.composing.extended_lengths import check_no_added_lengths
from growlm.config.composing.unread_files import UNREADABLE
from growlm.config.config_dir import OPTION as CONFIG_DIR_OPTION
from growlm.config.config_dir import ROOT_CONFIG_NAME, SEARCH_PATH_KEY, initialize_hydra
from growlm.config.load import register_schema, to_valid_run_config
from growlm.reporting.reading.sweep_record import WRONG, SweepRecord
from growlm.runtime.errors import UserError
from growlm.sweep.job_devices import reject_multi_device_job
from growlm.sweep.sweep_folder import make_job

BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
ANNOUNCE_MIN_JOBS = 20
"""Number of jobs above which composing takes seconds and is announced."""


def compose_jobs(arguments: Sequence[str]) -> tuple[DictConfig, list[Override], SweepRecord]:
    """Compose every job of a sweep, so that a misspelled key or group is found before the first one starts.

    Args:
        arguments: Arguments of the command, free text quoted.

    Returns:
        The first job's config including Hydra's, the parsed overrides, and the record of the sweep. Jobs with
        invalid settings are marked in the record. With another sweeper than Hydra's basic one, the record has no
        jobs yet, because the sweeper chooses them while it runs.

    Raises:
        UserError: If a job needs several devices, or a setting fits none of the plans.
        HydraException: If a job cannot be composed; also other exceptions of Hydra and OmegaConf.
    """
    config_dir, config_name, given = split_hydra_options(arguments)
    register_schema()
    with initialize_hydra(Path(config_dir).absolute() if config_dir else None):
        loader = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(given)
        check_no_added_lengths(parsed, "leave out the plus; a sweep's jobs are runs of their own")
        hydra_overrides = [str(o.input_line) for o in parsed if _is_hydra_override(o)]
        run_overrides = [o for o in parsed if not _is_hydra_override(o)]

        def compose_job(job: Sequence[str]) -> DictConfig:
            overrides = [*job, *hydra_overrides]
            try:
                return compose(config_name, overrides=overrides, return_hydra_config=True)
            except (HydraException, *UNREADABLE) as error:
                if explained := explain_composition_error(error, overrides, config_name):
                    raise explained from error
                raise

        constants = [o for o in run_overrides if not o.is_sweep_override()]
        sweeper = compose_job([str(o.input_line) for o in constants]).hydra.sweeper
        batch_size = sweeper.get("max_batch_size")
        if batch_size is not None and batch_size < 1:
            raise UserError("hydra.sweeper.max_batch_size", batch_size, "must be at least 1")
        is_basic = sweeper._target_ == BASIC_SWEEPER and not sweeper.params
        jobs = _expand_sweep(run_overrides if is_basic else constants)
        if len(jobs) > ANNOUNCE_MIN_JOBS:
            print(f"composing {len(jobs)} jobs ...")
        configs = [compose_job(job) for job in jobs]
        _complete_jobs(configs, [[*job, *hydra_overrides] for job in jobs], config_name)
    for job, config in zip(jobs, configs, strict=True):
        reject_multi_device_job(job, config, config_dir)
    sweep = SweepRecord(
        name=str(configs[0].name),
        command=[str(o.input_line) for o in run_overrides],
        constants=_expand_sweep(constants)[0],
        config=_hash_configs(configs),
        config_options=_list_config_options(config_dir, config_name),
    )
    if is_basic:
        sweep.jobs = [make_job(i, job, sweep.constants) for i, job in enumerate(jobs)]
        for entry, config in zip(sweep.jobs, configs, strict=True):
            run_config = copy.deepcopy(config)
            with open_dict(run_config):
                del run_config["hydra"]
            try:
                to_valid_run_config(run_config)
            except UserError as error:
                entry.status, entry.code, entry.message = WRONG, 2, str(error)
    return configs[0], parsed, sweep


def _list_config_options(config_dir: str | None, config_name: str) -> list[str]:
    """Return the options that name config files of the user's own, so that they work from any folder."""
    options = [] if config_dir is None else [CONFIG_DIR_OPTION, str(Path(config_dir).absolute())]
    return options + ([] if config_name == ROOT_CONFIG_NAME else ["--config-name", config_name])


def asks_for_sweep_in_file(options: TrainOptions) -> bool:
    """Return whether a config file of the user's own sets `hydra.mode` to MULTIRUN; an override comes first."""
    keys = {override.partition("=")[0].lstrip("+") for override in options.overrides}
    folder = options.given.get(CONFIG_DIR_OPTION)
    files = [] if folder is None else Path(folder).rglob("*.yaml")
    # Only then is it worth the time to compose the config.
    may_ask = any(b"MULTIRUN" in file.read_bytes() for file in files if file.is_file())
    if "hydra.mode" in keys or not (may_ask or SEARCH_PATH_KEY in keys):
        return False
    config_dir, config_name, given = split_hydra_options(quote_free_texts(options.to_arguments()))
    with (
        suppress(HydraException, OmegaConfBaseException, *UNREADABLE),  # reported later
        initialize_hydra(Path(config_dir).absolute() if config_dir else None),
    ):
        parsed = OverridesParser.create().parse_overrides(given)
        overrides = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
        config = compose(config_name, overrides=overrides, return_hydra_config=True)
        return config.hydra.mode is RunMode.MULTIRUN
    return False


def _complete_jobs(
    configs: Sequence[DictConfig], overrides: Sequence[Sequence[str]], config_name: str
) -> None:
    """Complete the phases of every job's config.

    Raises:
        UserError: If an override names no phase of its job's plan, or a growth setting is used by no job.
    """
    unused: list[dict[str, UserError]] = []
    for config, job in zip(configs, overrides, strict=True):
        complete_phases(config, job, config_name)
        errors = find_unused_settings(config, job, config_name)
        unused.append({error.key: error for error in errors})
    for key, error in unused[0].items():
        if all(key in others for others in unused):
            raise error


def _expand_sweep(overrides: Sequence[Override]) -> list[list[str]]:
    """Return the overrides of every job, in the order of Hydra's basic sweeper.

    Raises:
        HydraException: For an interval, which has no list of values.
    """
    choices: dict[str, list[str]] = {}  # of two overrides of a key, the last one counts
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise HydraException(f"{override.input_line}: only lists of values can be swept")
    return [list(job) for job in product(*choices.values())]


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
