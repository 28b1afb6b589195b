"""`python -m growlm.grow`: a checkpoint on disk to a grown checkpoint, one tensor in memory at a time."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

from rich.filesize import decimal

from growlm.checkpoint.checkpoint_folder import read_config
from growlm.checkpoint.offline_growth import grow_checkpoint
from growlm.cli.hydra_command import run_key_value_command
from growlm.config.command_schema import GrowCommand
from growlm.config.load import compose_command_config, load_command_config
from growlm.config.validation import apply_operators
from growlm.reporting.console.plain_console import make_stdout_console
from growlm.reporting.console.progress_bars import ByteProgressBar
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import run_main_and_exit

USAGE = """
python -m growlm.grow checkpoint=DIR out=DIR grow='[{widen: {scale_factor: 2}}, {deepen: {extra_layers: 4}}]'

  checkpoint       folder with config.json and model.safetensors (or shards)
  out              folder to write; must not exist; written whole or not at all
  grow             operators, in order: upcycle, multiply_experts, widen, deepen, with their settings
  seed             of noise, routers and filler columns (0)
  boundary_index   which growth of a run this is; part of the seed (0)
  optimizer_state  carry (default): moments that the checkpoint has are grown along; reset: left out
"""


def main() -> None:
    """The command."""
    sys.exit(
        run_key_value_command(USAGE, grow, partial(compose_command_config, "grow", GrowCommand))
    )


def grow(arguments: list[str]) -> int:
    """Grow the checkpoint; the exit code."""
    command = load_command_config("grow", GrowCommand, arguments)
    if not command.grow:
        raise UserError("grow", "[]", "needs at least one operator")
    config, _ = read_config(Path(command.checkpoint))
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
            progress=bar.update,
        )
    for line in growth_map.description:
        console.print(f"  {line}", markup=False)
    console.print(
        f"Wrote {command.out}: {decimal(bar.total)} in {time.perf_counter() - start:.1f} s",
        markup=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    run_main_and_exit(main)
