"""Run `python -m growlm.plan`: estimate memory, time and FLOPs of a plan without training."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from growlm.cli.hydra_command import run_key_value_command
from growlm.config.load import compose_run_config, load_config
from growlm.config.phase_plan import make_plan
from growlm.config.run_tokenizer import load_run_tokenizer
from growlm.config.schema import RunConfig
from growlm.config.validation import check_config
from growlm.optim.own_optimizer import reset_unknown_states
from growlm.planner.calibration import Calibration
from growlm.planner.forecast import DoesNotFitError, check_plan_fits, forecast_plan
from growlm.planner.plan_notes import describe_doubtful_settings
from growlm.planner.planned_devices import resolve_calibration, resolve_machine
from growlm.planner.sharding_layout import STRATEGIES
from growlm.reporting.console.plain_console import make_stdout_console
from growlm.reporting.console.plan_table import print_plan, print_strategy_comparison
from growlm.reporting.loggers.wandb_settings import check_wandb_keys
from growlm.runtime.device import resolve_accelerator
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import print_user_error, run_main_and_exit
from growlm.runtime.hardware import Machine
from growlm.training.baseline import apply_baseline
from growlm.training.requirements import check_requirements

USAGE = """
Estimate memory, time and FLOPs of a plan without training, and check that it fits its devices.

usage: python -m growlm.plan [overrides of growlm.train] [format=json] [calibrate=true] [devices=1,8,64]

  overrides        settings of the run, as for growlm.train, such as phase_plan=three_stage
  format           table or json (default: table)
  calibrate        true: measure this machine's speed again, which takes some seconds; it is measured once and
                   cached otherwise (default: false)
  devices          numbers of devices to compare, such as 1,8,64: prints only a table of the plan on each number
                   of devices, under each strategy
  trainer.devices  devices of the run; with several, all strategies are compared with the run's trainer.strategy
  cluster          devices to plan for: here, dgx_h100 or dgx_a100 (default: here), or settings cluster.KEY=VALUE

Exit code 0: the plan fits the memory of its devices; 2: it does not, and the message suggests changes.

Example:
  python -m growlm.plan phase_plan=three_stage cluster=dgx_h100 trainer.devices=8
"""
COMMAND_KEYS = {"format": ("table", "json"), "calibrate": ("false", "true")}
"""Choices of the command's own keys; the first of each is the default."""


def main() -> None:
    """Run the command; exit by `sys.exit`."""
    sys.exit(
        run_key_value_command(
            USAGE,
            plan,
            lambda arguments: compose_run_config(_split_arguments(arguments)[2]),
            composes_run=True,
        )
    )


def plan(arguments: list[str]) -> int:
    """Print the estimate and return the exit code."""
    own, device_counts, overrides = _split_arguments(arguments)
    recalibrate, as_json = own["calibrate"] == "true", own["format"] == "json"
    config = load_config(*overrides)
    if config.logger.name == "wandb":
        check_wandb_keys(config.logger)
    if config.cluster.accelerator is None:
        accelerator = resolve_accelerator(config.trainer.accelerator, "trainer.accelerator")
        check_requirements(config, accelerator)
    config = apply_baseline(config, _print_measuring)
    machine = resolve_machine(config)
    vocab_size = load_run_tokenizer(config).vocab_size
    if device_counts:
        tables = _forecast_device_counts(config, vocab_size, device_counts, recalibrate)
        if as_json:
            print(json.dumps(tables, indent=2))
        else:
            print_strategy_comparison(make_stdout_console(), tables)
        return 0
    run_plan, notes = reset_unknown_states(make_plan(config, vocab_size), config.optimizer)
    for note in (*notes, *describe_doubtful_settings(config, run_plan)):
        print(note, file=sys.stderr)
    table = forecast_plan(config, run_plan, machine)
    speed = resolve_calibration(config, machine, _print_measuring, recalibrate)
    record = table.to_json(speed)
    tables = []
    if table.layout.num_devices > 1:
        tables = _forecast_strategies(config, vocab_size, machine, speed)
    if as_json:
        print(json.dumps(record | ({"strategies": tables} if tables else {}), indent=2))
    else:
        print_plan(make_stdout_console(), record)
        if tables:
            print()
            print_strategy_comparison(make_stdout_console(), tables)
    try:
        check_plan_fits(config, vocab_size, table)
    except DoesNotFitError as error:
        return print_user_error(error)
    return 0


def _split_arguments(arguments: Sequence[str]) -> tuple[dict[str, str], list[int], list[str]]:
    """Split arguments into the command's own keys, the device counts of `devices=`, and overrides."""
    own = {key: choices[0] for key, choices in COMMAND_KEYS.items()}
    device_counts: list[int] = []
    overrides = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "devices":
            device_counts = _parse_device_counts(value)
        elif key not in own:
            overrides.append(argument)
        elif value in COMMAND_KEYS[key]:
            own[key] = value
        else:
            raise UserError(key, value, f"must be one of {', '.join(COMMAND_KEYS[key])}")
    return own, device_counts, overrides


def _parse_device_counts(value: str) -> list[int]:
    parts = value.strip("[]").split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise UserError("devices", value, "must be positive integers, such as 1,8,64,512")
    return [int(part) for part in parts]


def _forecast_device_counts(
    config: RunConfig, vocab_size: int, device_counts: Sequence[int], recalibrate: bool
) -> list[dict[str, Any]]:
    """Forecast a plan on several numbers of devices, and return the tables as JSON.

    Raises:
        UserError: If the plan's batches do not divide evenly among one of these numbers.
    """
    variants = [
        replace(config, trainer=replace(config.trainer, devices=count)) for count in device_counts
    ]
    for variant in reversed(variants):  # batch sizes that suit the last number often suit all
        check_config(variant)
    tables = []
    for index, variant in enumerate(variants):
        machine = resolve_machine(variant)
        speed = resolve_calibration(variant, machine, _print_measuring, recalibrate and not index)
        tables += _forecast_strategies(variant, vocab_size, machine, speed)
    return tables


def _forecast_strategies(
    config: RunConfig, vocab_size: int, machine: Machine, speed: Calibration
) -> list[dict[str, Any]]:
    """Forecast a plan under each strategy, and return the tables as JSON; one device has a single strategy."""
    run_plan = make_plan(config, vocab_size)
    strategies = STRATEGIES if (config.trainer.devices or 1) > 1 else STRATEGIES[:1]
    tables = (forecast_plan(config, run_plan, machine, strategy) for strategy in strategies)
    return [table.to_json(speed) for table in tables]


def _print_measuring() -> None:
    print("Measuring this machine's speed ...", file=sys.stderr)


if __name__ == "__main__":
    run_main_and_exit(main)
