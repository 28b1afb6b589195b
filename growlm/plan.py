"""`python -m growlm.plan`: what a plan will cost, without training."""

from __future__ import annotations

import json
import sys

from growlm.command import complain, run_small_command
from growlm.config.load import load_config
from growlm.data import load_tokenizer
from growlm.errors import UserError
from growlm.reporting.checks import plain_console
from growlm.reporting.plan_table import print_plan
from growlm.training.hardware import choose_accelerator, choose_precision
from growlm.training.memory import memory_limit
from growlm.training.plan import make_plan
from growlm.training.planner import DoesNotFitError, check_fits, forecast

USAGE = """
python -m growlm.plan [the overrides of growlm.train] [format=json]

  phase_plan=four_stage model=... phases.wide.batch_size=4 ...   as for growlm.train
  format                 table (default) or json

Exit code 0: the plan fits this machine's free memory; 2: it does not, and the message says which changes would.
"""
FORMATS = ("table", "json")


def main() -> None:
    """The command."""
    sys.exit(run_small_command(USAGE, plan))


def plan(arguments: list[str]) -> int:
    """Print the planner's table; the exit code."""
    formats = [a.removeprefix("format=") for a in arguments if a.startswith("format=")]
    chosen = formats[-1] if formats else "table"
    if chosen not in FORMATS:
        raise UserError("format", chosen, f"must be one of {', '.join(FORMATS)}")
    config = load_config(*(a for a in arguments if not a.startswith("format=")))
    accelerator = choose_accelerator(config.trainer)
    bf16 = choose_precision(config.trainer, accelerator) == "bf16-mixed"
    vocab_size = load_tokenizer(config.tokenizer.name).vocab_size
    table = forecast(
        config, make_plan(config, vocab_size), bf16, memory_limit(config.trainer, accelerator)
    )
    if chosen == "json":
        print(json.dumps(table.to_json(), indent=2))
    else:
        print_plan(plain_console(), table.to_json()["phases"], table.limit)
    try:
        check_fits(config, vocab_size, bf16, table)
    except DoesNotFitError as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    main()
