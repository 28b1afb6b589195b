"""`python -m growlm.convert`: a checkpoint to a Hugging Face model, or one of those to a checkpoint."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import torch
from rich.filesize import decimal

from growlm.cli.hydra_command import run_key_value_command
from growlm.config.command_schema import ConvertCommand
from growlm.config.load import compose_command_config, load_command_config
from growlm.huggingface import to_growlm, to_huggingface
from growlm.model.model_size import parameter_report
from growlm.reporting.console.plain_console import make_stdout_console
from growlm.reporting.console.progress_bars import ByteProgressBar
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import run_main_and_exit

USAGE = """
python -m growlm.convert source=DIR out=DIR to=huggingface
python -m growlm.convert source=DIR out=DIR to=growlm

  source        folder of a checkpoint (to=huggingface), or of a Hugging Face model with its config.json and
                safetensors (to=growlm): Llama, Mistral, Mixtral, GPT-NeoX with sequential residuals
  out           folder to write; must not exist; written whole or not at all
  to            huggingface or growlm
  dtype         of the weights: same (default), float32, bfloat16, float16
  architecture  for to=huggingface: auto (default), the class of transformers that computes the same, and growlm's
                own where there is none; growlm: always growlm's own
"""


def main() -> None:
    """The command."""
    sys.exit(
        run_key_value_command(
            USAGE, convert, partial(compose_command_config, "convert", ConvertCommand)
        )
    )


def convert(arguments: list[str]) -> int:
    """Convert; the exit code."""
    command = load_command_config("convert", ConvertCommand, arguments)
    source, out = Path(command.source), Path(command.out)
    dtype = None if command.dtype == "same" else getattr(torch, command.dtype)
    console = make_stdout_console()
    start = time.perf_counter()
    with ByteProgressBar(console, "writing") as bar:
        if command.to == "growlm":
            if command.architecture != "auto":
                allowed = "is for to=huggingface; to=growlm goes by config.json"
                raise UserError("architecture", command.architecture, allowed)
            done = to_growlm(source, out, dtype=dtype, progress=bar.update)
        else:
            done = to_huggingface(
                source,
                out,
                architecture=command.architecture,
                dtype=dtype,
                progress=bar.update,
            )
    total = parameter_report(done.config).total
    dtypes = " and ".join(str(each).removeprefix("torch.") for each in done.dtypes)
    lines = [
        f"  {done.class_name}: {total:,} parameters, {dtypes}",
        f"  tokenizer: {done.tokenizer}",
        *(f"  left out: {each}" for each in done.omitted),
        f"Wrote {command.out}: {decimal(bar.total)} in {time.perf_counter() - start:.1f} s",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_main_and_exit(main)
