"""`python -m growlm.plan`: what a plan will cost, without training."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from growlm.cli.hydra_command import run_key_value_command
from growlm.config.load import compose_run_config, load_config
from growlm.config.phase_plan import make_plan
from growlm.config.schema import RunConfig
from growlm.config.validation import check_config
from growlm.data import load_tokenizer
from growlm.planner.calibration import Calibration
from growlm.planner.forecast import DoesNotFitError, check_plan_fits, forecast_plan
from growlm.planner.planned_devices import resolve_calibration, resolve_machine
from growlm.planner.sharding_layout import STRATEGIES
from growlm.reporting.console.plain_console import make_stdout_console
from growlm.reporting.console.plan_table import print_plan, print_strategy_comparison
from growlm.runtime.device import resolve_accelerator
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import print_user_error, run_main_and_exit
from growlm.runtime.hardware import Machine
from growlm.training.baseline import apply_baseline
from growlm.training.requirements import check_requirements

USAGE = """
python -m growlm.plan [the overrides of growlm.train] [format=json] [calibrate=true] [devices=1,8,64]

  phase_plan=four_stage model=... phases.wide.batch_size=4 ...   as for growlm.train
  format                 table (default) or json
  calibrate              true: measure this machine's speed anew, some seconds; else it is done once
  trainer.devices        of the whole run; each strategy is shown beside the run's own (trainer.strategy)
  cluster                here (default), or what the devices are: dgx_h100, dgx_a100, or any of its keys
  devices                1,8,64: only a table of the plan on so many devices each, under each strategy

Exit code 0: the plan fits the memory of its devices; 2: it does not, and the message says which changes would.
"""
COMMAND_KEYS = {"format": ("table", "json"), "calibrate": ("false", "true")}
"""The first of each is the default."""


def main() -> None:
    """The command."""
    sys.exit(
        run_key_value_command(
            USAGE, plan, lambda arguments: compose_run_config(_split_arguments(arguments)[2])
        )
    )


def plan(arguments: list[str]) -> int:
    """Print the planner's table; the exit code."""
    own, numbers, overrides = _split_arguments(arguments)
    anew, as_json = own["calibrate"] == "true", own["format"] == "json"
    config = load_config(*overrides)
    if config.cluster.accelerator is None:
        accelerator = resolve_accelerator(config.trainer.accelerator, "trainer.accelerator")
        check_requirements(config, accelerator)
    config = apply_baseline(config, _print_measuring)
    machine = resolve_machine(config)
    vocab_size = load_tokenizer(config.tokenizer.name, config.tokenizer.path).vocab_size
    if numbers:
        tables = _forecast_device_counts(config, vocab_size, numbers, anew)
        if as_json:
            print(json.dumps(tables, indent=2))
        else:
            print_strategy_comparison(make_stdout_console(), tables)
        return 0
    table = forecast_plan(config, make_plan(config, vocab_size), machine)
    speed = resolve_calibration(config, machine, _print_measuring, anew)
    figures = table.to_json(speed)
    tables = []
    if table.layout.num_devices > 1:
        tables = _forecast_strategies(config, vocab_size, machine, speed)
    if as_json:
        print(json.dumps(figures | ({"strategies": tables} if tables else {}), indent=2))
    else:
        print_plan(make_stdout_console(), figures)
        if tables:
            print()
            print_strategy_comparison(make_stdout_console(), tables)
    try:
        check_plan_fits(config, vocab_size, table)
    except DoesNotFitError as error:
        return print_user_error(error)
    return 0


def _split_arguments(arguments: Sequence[str]) -> tuple[dict[str, str], list[int], list[str]]:
    """The command's own keys, the numbers of `devices=`, and everything else."""
    own = {key: allowed[0] for key, allowed in COMMAND_KEYS.items()}
    numbers: list[int] = []
    overrides = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "devices":
            numbers = _parse_device_counts(value)
        elif key not in own:
            overrides.append(argument)
        elif value in COMMAND_KEYS[key]:
            own[key] = value
        else:
            raise UserError(key, value, f"must be one of {', '.join(COMMAND_KEYS[key])}")
    return own, numbers, overrides


def _parse_device_counts(value: str) -> list[int]:
    parts = value.strip("[]").split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise UserError("devices", value, "must be numbers of at least 1, as 1,8,64,512")
    return [int(part) for part in parts]


def _forecast_device_counts(
    config: RunConfig, vocab_size: int, device_counts: Sequence[int], recalibrate: bool
) -> list[dict[str, Any]]:
    """Forecasts of a plan on several numbers of devices, as JSON.

    Raises:
        UserError: If the plan's batches cannot be shared by one of them.
    """
    configs = [
        replace(config, trainer=replace(config.trainer, devices=number)) for number in device_counts
    ]
    for one in reversed(configs):  # what the last one needs often does for all
        check_config(one)
    tables = []
    for index, one in enumerate(configs):
        machine = resolve_machine(one)
        speed = resolve_calibration(one, machine, _print_measuring, recalibrate and not index)
        tables += _forecast_strategies(one, vocab_size, machine, speed)
    return tables


def _forecast_strategies(
    config: RunConfig, vocab_size: int, machine: Machine, speed: Calibration
) -> list[dict[str, Any]]:
    """Forecasts of the same plan on the same devices, as JSON; one alone has nothing to share."""
    run_plan = make_plan(config, vocab_size)
    strategies = STRATEGIES if (config.trainer.devices or 1) > 1 else STRATEGIES[:1]
    tables = (forecast_plan(config, run_plan, machine, strategy) for strategy in strategies)
    return [table.to_json(speed) for table in tables]


def _print_measuring() -> None:
    print("measuring this machine ...", file=sys.stderr)


if __name__ == "__main__":
    run_main_and_exit(main)
