"""`python -m growlm.evaluate`: loss, perplexity and bits per byte of a checkpoint."""

from __future__ import annotations

import json
import math
import sys
import time
from functools import partial
from typing import Any

import torch
from rich.console import Console

from growlm.cli.hydra_command import run_key_value_command
from growlm.config.command_schema import EvaluateCommand
from growlm.config.load import compose_command_config, load_command_config
from growlm.data.tokenization.tokenizer import Tokenizer
from growlm.inference.checkpoint_loading import open_checkpoint
from growlm.inference.evaluation_text import (
    EvaluationTokens,
    iter_evaluation_documents,
    tokenize_for_evaluation,
)
from growlm.inference.scoring import Score, bits_per_byte, score_tokens
from growlm.reporting.console.plain_console import make_stderr_console, make_stdout_console
from growlm.reporting.console.progress_bars import CountProgressBar
from growlm.runtime.device import resolve_accelerator, torch_device
from growlm.runtime.errors import RunError, UserError
from growlm.runtime.exit_codes import run_main_and_exit

USAGE = """
python -m growlm.evaluate checkpoint=DIR data=text data.path=FILE

  checkpoint       folder of the model
  data             what it is scored on: a data group, with its settings as in training (embedded); of these only
                   what says which documents counts, and data.validation_every with split=validation
  split            validation: what training on this data holds out; all (validation)
  limit            score at most so many tokens (all)
  sequence_length  tokens the model reads at once (its max_seq_len)
  stride           tokens from one window to the next; fewer give more context and take longer (sequence_length)
  batch_size       windows read at once (8)
  seed             which embedded stories (0)
  format           text, or json (text)
  device           auto, cpu, gpu (auto)
  precision        32-true, bf16-mixed (32-true)
  tokenizer_name   for a checkpoint that does not say: embedded, gpt2, bytes
"""


def main() -> None:
    """The command."""
    sys.exit(
        run_key_value_command(
            USAGE, evaluate, partial(compose_command_config, "evaluate", EvaluateCommand)
        )
    )


def evaluate(arguments: list[str]) -> int:
    """Score; the exit code."""
    command = load_command_config("evaluate", EvaluateCommand, arguments)
    accelerator = resolve_accelerator(command.device, "device")
    pretrained, tokenizer = open_checkpoint(command.checkpoint, command.tokenizer_name)
    longest = pretrained.config.max_seq_len
    length = command.sequence_length or longest
    if length > longest:
        raise UserError("sequence_length", length, f"the model reads at most {longest}")
    stride = command.stride or length
    if stride > length:
        raise UserError("stride", stride, f"must be at most the sequence length, {length}")
    row = _read_documents(command, tokenizer)
    with make_stderr_console().status(f"reading {pretrained.folder}"):
        model = pretrained.load_model().eval().to(torch_device(accelerator))
    half = command.precision == "bf16-mixed"
    start = time.perf_counter()
    with (
        CountProgressBar(make_stderr_console(), "scoring", "tokens") as bar,
        torch.autocast(model.embedding.weight.device.type, torch.bfloat16, enabled=half),
    ):
        score = score_tokens(
            model,
            row.tokens,
            row.context_mask,
            sequence_length=length,
            stride=stride,
            batch_size=command.batch_size,
            eos_token_id=tokenizer.eos_token_id,
            progress=bar.update,
        )
    if not math.isfinite(score.nats):
        raise RunError(f"the loss is {score.nats}: the model gives no finite probabilities")
    record = _build_result(command, tokenizer, row, score, length, stride)
    record["seconds"] = time.perf_counter() - start
    if command.format == "json":
        print(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        _print_result(make_stdout_console(), record)
    return 0


def _read_documents(command: EvaluateCommand, tokenizer: Tokenizer) -> EvaluationTokens:
    documents = iter_evaluation_documents(command.data, command.seed, command.split)
    with make_stderr_console().status("reading documents") as status:
        return tokenize_for_evaluation(
            documents,
            tokenizer,
            command.limit,
            lambda done: status.update(f"reading documents: {done:,}"),
        )


def _build_result(
    command: EvaluateCommand,
    tokenizer: Tokenizer,
    row: EvaluationTokens,
    score: Score,
    length: int,
    stride: int,
) -> dict[str, Any]:
    text_tokens, text_nats = score.num_tokens - score.num_eos_tokens, score.nats - score.eos_nats
    return {
        "checkpoint": command.checkpoint,
        "tokenizer": tokenizer.name,
        "data": command.data.display_name,
        "split": command.split,
        "documents": row.num_documents,
        "bytes": row.num_bytes,
        "tokens": score.num_tokens,
        "loss": score.loss,
        "perplexity": score.perplexity,
        "bits_per_byte": bits_per_byte(score.nats, row.num_bytes),
        "without_ends_of_text": {
            "tokens": text_tokens,
            "loss": text_nats / text_tokens,
            "bits_per_byte": bits_per_byte(text_nats, row.num_bytes),
        },
        "sequence_length": length,
        "stride": stride,
        "precision": command.precision,
    }


def _print_result(console: Console, record: dict[str, Any]) -> None:
    rest = record["without_ends_of_text"]
    ratio = record["bytes"] / record["tokens"]
    for name, value in {
        "data": f"{record['data']} ({record['split']}): {record['documents']:,} documents, "
        f"{record['bytes']:,} bytes",
        "tokens": f"{record['tokens']:,} ({record['tokenizer']}, {ratio:.2f} bytes each)",
        "loss": f"{record['loss']:.4f} nats per token",
        "perplexity": f"{record['perplexity']:.4f}",
        "bits per byte": f"{record['bits_per_byte']:.4f}",
        "without ends of text": f"loss {rest['loss']:.4f}, bits per byte {rest['bits_per_byte']:.4f}",
    }.items():
        console.print(f"{name:<22}{value}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    run_main_and_exit(main)
