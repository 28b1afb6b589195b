"""`python -m growlm.plan`: what a plan will cost, without training."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

from growlm.command import run_small_command
from growlm.config.checks import check_config
from growlm.config.load import load_config
from growlm.config.schema import RunConfig
from growlm.data import load_tokenizer
from growlm.errors import UserError
from growlm.exit_codes import complain
from growlm.reporting.plain import plain_console
from growlm.reporting.plan_table import print_plan, print_sharing
from growlm.training.adamw_8bit import check_available
from growlm.training.baseline import with_baseline
from growlm.training.cluster import planned_machine, planned_speed
from growlm.training.plan import make_plan
from growlm.training.planner import DoesNotFitError, check_fits, every_strategy, forecast

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
OWN_KEYS = {"format": ("table", "json"), "calibrate": ("false", "true")}
"""The first of each is the default."""


def main() -> None:
    """The command."""
    sys.exit(run_small_command(USAGE, plan))


def plan(arguments: list[str]) -> int:
    """Print the planner's table; the exit code."""
    own = {key: allowed[0] for key, allowed in OWN_KEYS.items()}
    numbers: list[int] = []
    overrides = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "devices":
            numbers = _numbers(value)
        elif key not in own:
            overrides.append(argument)
        elif value in OWN_KEYS[key]:
            own[key] = value
        else:
            raise UserError(key, value, f"must be one of {', '.join(OWN_KEYS[key])}")
    config = with_baseline(load_config(*overrides), _tell)
    machine = planned_machine(config)
    if config.cluster.accelerator is None:
        check_available(config.optimizer.name, machine.accelerator)
    vocab_size = load_tokenizer(config.tokenizer.name, config.tokenizer.path).vocab_size
    if numbers:
        figures = _on_each(config, vocab_size, numbers, own["calibrate"] == "true")
        if own["format"] == "json":
            print(json.dumps(figures, indent=2))
        else:
            print_sharing(plain_console(), figures)
        return 0
    run_plan = make_plan(config, vocab_size)
    table = forecast(config, run_plan, machine)
    speed = planned_speed(config, machine, _tell, anew=own["calibrate"] == "true")
    figures = table.to_json(speed)
    others = []
    if table.layout.devices > 1:
        others = [other.to_json(speed) for other in every_strategy(config, run_plan, machine)]
    if own["format"] == "json":
        print(json.dumps(figures | ({"strategies": others} if others else {}), indent=2))
    else:
        print_plan(plain_console(), figures)
        if others:
            print()
            print_sharing(plain_console(), others)
    try:
        check_fits(config, vocab_size, table)
    except DoesNotFitError as error:
        return complain(error)
    return 0


def _on_each(
    config: RunConfig, vocab_size: int, numbers: list[int], anew: bool
) -> list[dict[str, Any]]:
    """The forecasts of a plan on several numbers of devices, as JSON.

    Raises:
        UserError: If the plan's batches cannot be shared by one of them.
    """
    configs = [
        replace(config, trainer=replace(config.trainer, devices=number)) for number in numbers
    ]
    for one in configs:
        check_config(one)
    figures = []
    for one in configs:
        machine = planned_machine(one)
        speed = planned_speed(one, machine, _tell, anew)
        anew = False
        run_plan = make_plan(one, vocab_size)
        tables = every_strategy(one, run_plan, machine)
        figures += [
            table.to_json(speed) for table in tables[: None if one.trainer.devices != 1 else 1]
        ]
    return figures


def _numbers(value: str) -> list[int]:
    try:
        numbers = [int(part) for part in value.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise UserError("devices", value, "must be numbers of at least 1, as 1,8,64,512")
    return numbers


def _tell() -> None:
    print("measuring this machine ...", file=sys.stderr)


if __name__ == "__main__":
    main()
