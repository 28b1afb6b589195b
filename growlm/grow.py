"""Run `python -m growlm.grow`: grow a checkpoint on disk, one tensor in memory at a time."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

from growlm.checkpoint.checkpoint_folder import read_skeleton
from growlm.checkpoint.offline_growth import grow_checkpoint
from growlm.cli.hydra_command import run_key_value_command
from growlm.config.command_schema import GrowCommand
from growlm.config.load import compose_command_config, load_command_config
from growlm.config.validation import apply_operators
from growlm.growth.model_protocol import growth_config_of
from growlm.growth.operators.registry import available_operators, find_broken_entry_points
from growlm.reporting.console.plain_console import make_stdout_console
from growlm.reporting.console.progress_bars import ByteProgressBar
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.runtime.number_format import format_bytes, format_seconds

USAGE = """
Grow a checkpoint on disk into a larger one, one tensor in memory at a time.

usage: python -m growlm.grow checkpoint=DIR out=DIR grow=OPERATORS [setting=value ...]

  checkpoint       folder with config.json and model.safetensors (or shards)
  out              folder to create; must not exist; nothing is left of it if the growth fails
  grow             list of operators with their settings, applied in order
  seed             seed of noise, routers and filler columns (default: 0)
  boundary_index   index of this growth in its run; part of the seed (default: 0)
  optimizer_state  carry: grow the checkpoint's optimizer state too, if it has one; reset: leave it out
                   (default: carry)
  trust            packages whose classes may be built, where the checkpoint's model is of a class of its own
                   (default: none)

Operators; their settings are listed in docs/operators/, or in the docs of the package that brings them:
{operators}

Example:
  python -m growlm.grow checkpoint=RUN_DIR/checkpoints/large_moe_final out=grown \\
      grow='[{{widen: {{scale_factor: 2}}}}, {{deepen: {{extra_layers: 4}}}}]'
"""


def main() -> None:
    """Run the command; exit by `sys.exit`."""
    compose = partial(compose_command_config, "grow", GrowCommand)
    sys.exit(
        run_key_value_command(format_usage(), grow, compose, writes_files=True, schema=GrowCommand)
    )


def format_usage() -> str:
    """Return the text of `--help`, with the operators that are installed."""
    lines = [f"  {name:<17}{each.description}" for name, each in available_operators().items()]
    lines += [
        f"  {name:<17}cannot be used: {why}" for name, why in find_broken_entry_points().items()
    ]
    return USAGE.format(operators="\n".join(lines))


def grow(arguments: list[str]) -> int:
    """Grow a checkpoint and return the exit code."""
    command = load_command_config("grow", GrowCommand, arguments)
    if not command.grow:
        raise UserError("grow", "[]", "needs at least one operator")
    model, _ = read_skeleton(Path(command.checkpoint), trust=command.trust)
    config = growth_config_of(model)
    operators, _ = apply_operators(command.grow, "grow", config)
    console = make_stdout_console()
    start = time.perf_counter()
    with ByteProgressBar(console, "writing") as bar:
        growth_map = grow_checkpoint(
            Path(command.checkpoint),
            Path(command.out),
            operators,
            seed=command.seed,
            boundary_index=command.boundary_index,
            optimizer_state=command.optimizer_state,
            trust=command.trust,
            progress=bar.update,
        )
    for line in growth_map.description:
        console.print(f"  {line}", markup=False)
    console.print(
        f"Wrote {command.out}: {format_bytes(bar.total)} in {format_seconds(time.perf_counter() - start)}",
        markup=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    run_main_and_exit(main)
