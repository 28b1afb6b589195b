"""Run `python -m growlm.evaluate`: measure loss, perplexity and bits per byte of a checkpoint."""

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
from growlm.data.document_boundaries import make_document_positions
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
from growlm.runtime.number_format import format_loss, format_ratio
from growlm.runtime.output_streams import can_write_unicode
from growlm.training.nan_check import describe_nonfinite_weight

USAGE = """
Measure loss, perplexity and bits per byte of a checkpoint on text.

usage: python -m growlm.evaluate checkpoint=DIR [setting=value ...]

  checkpoint       folder of a growlm checkpoint or a Hugging Face model
  data             config group of the data, with its settings as in training (default: embedded); only the
                   settings that select documents matter, data.validation_every for split=validation,
                   data.max_unknown_fraction, and data.document_mask: whether attention stays within documents
  split            validation: the documents that training on this data holds out; all (default: validation)
  limit            maximum number of tokens to score (default: all)
  sequence_length  tokens per window (default: the model's max_seq_len)
  stride           tokens from one window to the next; a smaller stride gives more context and takes longer
                   (default: sequence_length)
  batch_size       windows per forward pass (default: 8)
  seed             seed of the embedded stories (default: 0)
  format           text or json (default: text)
  device           auto, cpu or gpu (default: auto)
  precision        32-true or bf16-mixed (default: 32-true)
  tokenizer_name   tokenizer of a checkpoint that does not name one: embedded, gpt2 or bytes

Example:
  python -m growlm.evaluate checkpoint=RUN_DIR/checkpoints/large_moe_final data=text data.path=book.txt split=all
"""


def main() -> None:
    """Run the command; exit by `sys.exit`."""
    sys.exit(
        run_key_value_command(
            USAGE,
            evaluate,
            partial(compose_command_config, "evaluate", EvaluateCommand),
            schema=EvaluateCommand,
        )
    )


def evaluate(arguments: list[str]) -> int:
    """Score a checkpoint and return the exit code."""
    command = load_command_config("evaluate", EvaluateCommand, arguments)
    accelerator = resolve_accelerator(command.device, "device")
    pretrained, tokenizer = open_checkpoint(command.checkpoint, command.tokenizer_name)
    max_seq_len = pretrained.config.max_seq_len
    length = command.sequence_length or max_seq_len
    if length > max_seq_len:
        reason = f"must be at most the model's max_seq_len, {max_seq_len}"
        raise UserError("sequence_length", length, reason)
    stride = command.stride or length
    if stride > length:
        raise UserError("stride", stride, f"must be at most the sequence length, {length}")
    data = _read_documents(command, tokenizer)
    with make_stderr_console().status(f"reading {pretrained.folder}"):
        model = pretrained.load_model().eval().to(torch_device(accelerator))
    use_bf16 = command.precision == "bf16-mixed"
    start = time.perf_counter()
    with (
        CountProgressBar(make_stderr_console(), "scoring", "tokens") as bar,
        torch.autocast(model.embedding.weight.device.type, torch.bfloat16, enabled=use_bf16),
    ):
        score = score_tokens(
            model,
            data.tokens,
            data.context_mask,
            sequence_length=length,
            stride=stride,
            batch_size=command.batch_size,
            eos_token_id=tokenizer.eos_token_id,
            document_positions=(
                make_document_positions(tokenizer) if command.data.document_mask else None
            ),
            progress=bar.update,
        )
    if not math.isfinite(score.nats):
        weight = describe_nonfinite_weight(model)
        cause = "the model's probabilities are not finite" + (f" ({weight})" if weight else "")
        raise RunError(f"the loss is {score.nats}: {cause}")
    record = _build_result(command, tokenizer, data, score, length, stride)
    record["seconds"] = time.perf_counter() - start
    if data.unknown.num_unknown_bytes:
        note = f"warning: {data.unknown.describe()}; bits per byte leave them out"
        make_stderr_console().print(note, markup=False, soft_wrap=True)
    if command.format == "json":
        print(json.dumps(record, indent=2, ensure_ascii=not can_write_unicode()))
    else:
        _print_result(make_stdout_console(), record)
    return 0


def _read_documents(command: EvaluateCommand, tokenizer: Tokenizer) -> EvaluationTokens:
    console = make_stderr_console()
    documents = iter_evaluation_documents(
        command.data,
        command.seed,
        command.split,
        lambda note: console.print(note, markup=False, highlight=False, soft_wrap=True),
    )
    with console.status("reading documents") as status:
        return tokenize_for_evaluation(
            documents,
            tokenizer,
            command.limit,
            lambda done: status.update(f"reading documents: {done:,}"),
            command.data.max_unknown_fraction,
        )


def _build_result(
    command: EvaluateCommand,
    tokenizer: Tokenizer,
    data: EvaluationTokens,
    score: Score,
    length: int,
    stride: int,
) -> dict[str, Any]:
    text_tokens, text_nats = score.num_tokens - score.num_eos_tokens, score.nats - score.eos_nats
    num_bytes = data.num_encoded_bytes
    return {
        "checkpoint": command.checkpoint,
        "tokenizer": tokenizer.name,
        "data": command.data.display_name,
        "split": command.split,
        "documents": data.num_documents,
        "bytes": data.num_bytes,
        "unknown_bytes": data.unknown.num_unknown_bytes,
        "tokens": score.num_tokens,
        "loss": score.loss,
        "perplexity": score.perplexity,
        "bits_per_byte": bits_per_byte(score.nats, num_bytes),
        "without_ends_of_text": {
            "tokens": text_tokens,
            "loss": text_nats / text_tokens,
            "bits_per_byte": bits_per_byte(text_nats, num_bytes),
        },
        "sequence_length": length,
        "stride": stride,
        "document_mask": command.data.document_mask,
        "precision": command.precision,
    }


def _print_result(console: Console, record: dict[str, Any]) -> None:
    without_eos = record["without_ends_of_text"]
    bytes_per_token = record["bytes"] / record["tokens"]
    for name, value in {
        "data": f"{record['data']} ({record['split']}): {record['documents']:,} documents, "
        f"{record['bytes']:,} bytes",
        "tokens": f"{record['tokens']:,} ({record['tokenizer']}, {format_ratio(bytes_per_token)} bytes each)",
        "loss": f"{format_loss(record['loss'])} nats per token",
        "perplexity": format_loss(record["perplexity"]),
        "bits per byte": format_loss(record["bits_per_byte"]),
        "without EOS tokens": f"loss {format_loss(without_eos['loss'])}, "
        f"bits per byte {format_loss(without_eos['bits_per_byte'])}",
    }.items():
        console.print(f"{name:<22}{value}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    run_main_and_exit(main)
