"""Run `python -m growlm.grow`: grow a model folder on disk, one tensor in memory at a time."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path

import torch

from growlm.checkpoint.checkpoint_folder import read_skeleton
from growlm.checkpoint.offline_growth import check_target_size
from growlm.cli.hydra_command import run_key_value_command
from growlm.config.command_schema import GrowCommand
from growlm.config.load import compose_command_config, load_command_config
from growlm.config.validation import apply_operators
from growlm.growth.grow_model import Operator
from growlm.growth.model_protocol import growth_config_of
from growlm.growth.operators.registry import available_operators, find_broken_entry_points
from growlm.huggingface.config_reading import is_hf_folder, read_hf_config
from growlm.huggingface.folders.folder_growth import prepare_folder_growth
from growlm.huggingface.folders.folder_report import FolderGrowthReport, join_dtypes
from growlm.reporting.console.plain_console import make_stdout_console
from growlm.reporting.console.progress_bars import ByteProgressBar
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.runtime.number_format import format_bytes, format_seconds

USAGE = """
Grow a model folder on disk into a larger one, one tensor in memory at a time.

usage: python -m growlm.grow checkpoint=DIR out=DIR grow=OPERATORS [setting=value ...]

  checkpoint       folder of a growlm checkpoint or a Hugging Face model; docs/architectures.md lists the
                   architectures
  out              folder to create; must not exist; nothing is left of it if the growth fails
  grow             list of operators with their settings, applied in order
  to               format of out: huggingface or growlm (default: that of checkpoint)
  dtype            dtype that the weights are converted to before they are grown: same, float32, bfloat16, float16
                   (default: same)
  architecture     for a Hugging Face folder: auto, the transformers class that computes the same, or growlm's own
                   class if there is none; growlm, always growlm's own class (default: auto)
  dry_run          only print what would be written, without reading weights; out may be left out (default: false)
  verify           read the written weights again and compare each with its source (default: false)
  seed             seed of noise, routers and filler columns (default: 0)
  boundary_index   index of this growth in its run; part of the seed (default: 0)
  optimizer_state  carry: grow the checkpoint's optimizer state too, if it has one; reset: leave it out
                   (default: carry, where out is a checkpoint)
  trust            packages whose classes may be built, where the checkpoint's model is of a class of its own
                   (default: none)

Operators; their settings are listed in docs/operators/, or in the docs of the package that brings them:
{operators}

Examples:
  python -m growlm.grow checkpoint=RUN_DIR/checkpoints/large_moe_final out=grown \\
      grow='[{{widen: {{scale_factor: 2}}}}, {{deepen: {{extra_layers: 4}}}}]'
  python -m growlm.grow checkpoint=Llama-3.2-1B out=Mixtral grow='[{{upcycle: {{num_experts: 8}}}}]'
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
    """Grow a model folder, or print what that would give, and return the exit code."""
    command = load_command_config("grow", GrowCommand, arguments)
    if not command.grow:
        raise UserError("grow", "[]", "needs at least one operator")
    if command.out is None and not command.dry_run:
        raise UserError("out", "???", "must be given")
    if command.dry_run and command.verify:
        raise UserError(
            "verify", "true", "a dry run writes no weights to compare; leave one of them out"
        )
    source = Path(command.checkpoint)
    growth = prepare_folder_growth(
        source,
        _read_operators(command, source),
        to=command.to,
        dtype=None if command.dtype == "same" else getattr(torch, command.dtype),
        architecture=command.architecture,
        seed=command.seed,
        boundary_index=command.boundary_index,
        optimizer_state=command.optimizer_state,
        trust=command.trust,
        checks_values=not command.dry_run,
    )
    console = make_stdout_console()
    if command.dry_run:
        if command.out is not None:
            needed = growth.report.bytes_after + growth.report.sidecar_bytes
            check_target_size(Path(command.out), needed)
        for line in _describe_plan(growth.report):
            console.print(line, markup=False, soft_wrap=True)
        return 0
    start = time.perf_counter()
    with ByteProgressBar(console, "writing") as bar:
        report = growth.write(Path(str(command.out)), bar.update, command.verify)
    size = f"{format_bytes(bar.total)} in {format_seconds(time.perf_counter() - start)}"
    lines = [f"  {line}" for line in (*report.growth_map.description, *report.rounding)]
    for line in [*lines, *_describe_class(report), f"Wrote {command.out}: {size}"]:
        console.print(line, markup=False, soft_wrap=True)
    return 0


def _read_operators(command: GrowCommand, source: Path) -> list[Operator]:
    """Build the operators, checked against the model that they grow."""
    if is_hf_folder(source):
        config, _ = read_hf_config(source, "checkpoint")
    else:
        config = growth_config_of(read_skeleton(source, trust=command.trust)[0])
    operators, _ = apply_operators(command.grow, "grow", config)
    return list(operators)


def _describe_class(report: FolderGrowthReport) -> list[str]:
    """Return lines on the class that is written, the check of the weights, and what is left out."""
    reason = "" if report.own_class_reason is None else f" ({report.own_class_reason})"
    lines = [
        f"  {report.class_before} → {report.class_after}{reason}, {join_dtypes(report.dtypes)}"
    ]
    if report.weight_check is not None:
        lines.append(f"  weight integrity: {report.weight_check.summary}")
    return lines + [f"  left out: {each}" for each in report.omitted]


def _describe_plan(report: FolderGrowthReport) -> list[str]:
    """Return what a growth would write, as lines of text."""
    before, after = report.parameters_before, report.parameters_after
    kind = "a Hugging Face model" if report.to == "huggingface" else "a growlm checkpoint"
    return [
        f"Would write {kind}; nothing has been written, and no weights have been read.",
        *(f"  {line}" for line in report.growth_map.description),
        *_describe_class(report),
        f"  parameters: {before.total:,} → {after.total:,}",
        f"  active for a token: {before.active:,} → {after.active:,}",
        f"  weights on disk: {format_bytes(report.bytes_before)} → {format_bytes(report.bytes_after)}",
        f"  peak memory: about {format_bytes(report.peak_memory)}",
        f"  copied: {', '.join(report.sidecar_files) or 'no files'} ({format_bytes(report.sidecar_bytes)})",
        f"  tokenizer: {report.tokenizer}",
        *(f"  {line}" for line in report.exactness),
        "config.json:",
        *json.dumps(report.config_json, indent=2).splitlines(),
    ]


if __name__ == "__main__":
    run_main_and_exit(main)
