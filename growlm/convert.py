"""Run `python -m growlm.convert`: convert between growlm checkpoints and Hugging Face models."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import torch

from growlm.cli.hydra_command import run_key_value_command
from growlm.config.command_schema import ConvertCommand
from growlm.config.load import compose_command_config, load_command_config
from growlm.huggingface import to_growlm, to_huggingface
from growlm.model.model_size import parameter_report
from growlm.reporting.console.plain_console import make_stdout_console
from growlm.reporting.console.progress_bars import ByteProgressBar
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.runtime.number_format import format_bytes, format_seconds

USAGE = """
Convert a growlm checkpoint to a Hugging Face model, or a Hugging Face model to a growlm checkpoint.

usage: python -m growlm.convert source=DIR out=DIR to=huggingface|growlm [setting=value ...]

  source        folder of a growlm checkpoint (to=huggingface), or of a Hugging Face model with config.json and
                safetensors files (to=growlm); docs/architectures.md lists the architectures
  out           folder to create; must not exist; nothing is left of it if the conversion fails
  to            format of out: huggingface or growlm
  dtype         dtype of the weights: same, float32, bfloat16, float16 (default: same)
  architecture  for to=huggingface: auto, the transformers class that computes the same, or growlm's own class if
                there is none; growlm, always growlm's own class (default: auto)

Examples:
  python -m growlm.convert source=RUN_DIR/checkpoints/large_moe_final out=exported to=huggingface
  python -m growlm.convert source=Llama-3.2-1B out=start to=growlm dtype=float32
"""


def main() -> None:
    """Run the command; exit by `sys.exit`."""
    sys.exit(
        run_key_value_command(
            USAGE,
            convert,
            partial(compose_command_config, "convert", ConvertCommand),
            writes_files=True,
            schema=ConvertCommand,
        )
    )


def convert(arguments: list[str]) -> int:
    """Convert a folder and return the exit code."""
    command = load_command_config("convert", ConvertCommand, arguments)
    source, out = Path(command.source), Path(command.out)
    dtype = None if command.dtype == "same" else getattr(torch, command.dtype)
    console = make_stdout_console()
    start = time.perf_counter()
    with ByteProgressBar(console, "writing") as bar:
        if command.to == "growlm":
            if command.architecture != "auto":
                reason = "applies to to=huggingface only; to=growlm reads it from config.json"
                raise UserError("architecture", command.architecture, reason)
            report = to_growlm(source, out, dtype=dtype, progress=bar.update)
        else:
            report = to_huggingface(
                source,
                out,
                architecture=command.architecture,
                dtype=dtype,
                progress=bar.update,
            )
    total = parameter_report(report.config).total
    dtypes = " and ".join(str(each).removeprefix("torch.") for each in report.dtypes)
    lines = [
        f"  {report.class_name}: {total:,} parameters, {dtypes}",
        f"  tokenizer: {report.tokenizer}",
        *(f"  left out: {each}" for each in report.omitted),
        f"Wrote {command.out}: {format_bytes(bar.total)} in {format_seconds(time.perf_counter() - start)}",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_main_and_exit(main)
