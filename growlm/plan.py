"""`python -m growlm.plan`: what a plan will cost, without training."""

from __future__ import annotations

import json
import sys

from growlm.command import run_small_command
from growlm.config.load import load_config
from growlm.data import load_tokenizer
from growlm.errors import UserError
from growlm.exit_codes import complain
from growlm.reporting.plain import plain_console
from growlm.reporting.plan_table import print_plan
from growlm.training.baseline import with_baseline
from growlm.training.calibration import calibration
from growlm.training.hardware import find_machine
from growlm.training.plan import make_plan
from growlm.training.planner import DoesNotFitError, check_fits, forecast

USAGE = """
python -m growlm.plan [the overrides of growlm.train] [format=json] [calibrate=true]

  phase_plan=four_stage model=... phases.wide.batch_size=4 ...   as for growlm.train
  format                 table (default) or json
  calibrate              true: measure this machine's speed anew, some seconds; else it is done once

Exit code 0: the plan fits this machine's free memory; 2: it does not, and the message says which changes would.
"""
OWN_KEYS = {"format": ("table", "json"), "calibrate": ("false", "true")}
"""The first of each is the default."""


def main() -> None:
    """The command."""
    sys.exit(run_small_command(USAGE, plan))


def plan(arguments: list[str]) -> int:
    """Print the planner's table; the exit code."""
    own = {key: allowed[0] for key, allowed in OWN_KEYS.items()}
    for key, _, value in (a.partition("=") for a in arguments if a.partition("=")[0] in own):
        if value not in OWN_KEYS[key]:
            raise UserError(key, value, f"must be one of {', '.join(OWN_KEYS[key])}")
        own[key] = value
    config = load_config(*(a for a in arguments if a.partition("=")[0] not in own))

    def tell() -> None:
        print("measuring this machine ...", file=sys.stderr)

    config = with_baseline(config, tell)
    machine = find_machine(config.trainer)
    vocab_size = load_tokenizer(config.tokenizer.name, config.tokenizer.path).vocab_size
    table = forecast(config, make_plan(config, vocab_size), machine)
    speed = calibration(machine, tell, anew=own["calibrate"] == "true")
    figures = table.to_json(speed)
    if own["format"] == "json":
        print(json.dumps(figures, indent=2))
    else:
        print_plan(plain_console(), figures)
    try:
        check_fits(config, vocab_size, table)
    except DoesNotFitError as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    main()
