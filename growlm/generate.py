"""Run `python -m growlm.generate`: generate text from a checkpoint."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from growlm.cli.hydra_command import run_key_value_command
from growlm.config.command_schema import GenerateCommand
from growlm.config.load import compose_command_config, load_command_config
from growlm.data.tokenization.tokenizer import Tokenizer
from growlm.inference.checkpoint_loading import open_checkpoint
from growlm.inference.generation import FULL, Continuation
from growlm.inference.generation import generate as continue_prompts
from growlm.inference.outputs import (
    GenerationRequest,
    WriteText,
    check_output_path,
    format_json_line,
    format_text,
    open_output,
)
from growlm.inference.precision import cast_weights
from growlm.inference.prompts import Prompt, read_prompts
from growlm.inference.sampling import Sampling
from growlm.inference.text_stream import StreamingDetokenizer
from growlm.model.transformer import TransformerLM
from growlm.reporting.console.plain_console import make_stderr_console
from growlm.reporting.console.progress_bars import CountProgressBar
from growlm.runtime.device import has_native_bf16, resolve_accelerator, torch_device
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.runtime.number_format import format_count, format_seconds
from growlm.runtime.output_streams import can_write_unicode

MAX_WARNINGS = 3
"""Number of prompts with unknown text that are named."""
USAGE = """
Generate text from a checkpoint.

usage: python -m growlm.generate checkpoint=DIR prompt=TEXT|prompts_file=FILE [setting=value ...]

  checkpoint          folder of a growlm checkpoint or a Hugging Face model
  prompt              text to continue; empty (prompt=) to start a new text
  prompts_file        file with many prompts: one per line, or .jsonl, .csv, ... with the text under "prompt"
  max_new_tokens      maximum number of tokens per continuation (default: 128)
  temperature         divides the logits; 0 always takes the most likely token (default: 0.8)
  top_k               sample from the k most likely tokens; 0 for all (default: 0)
  top_p               sample from the smallest set of tokens with total probability p; 1 for all (default: 1)
  repetition_penalty  above 1, tokens that the text already has become less likely (default: 1)
  seed                seed of sampling (default: 0)
  samples             continuations per prompt (default: 1)
  batch_size          continuations generated at once (default: 16)
  stop_tokens         token ids that end a continuation, in addition to the EOS tokens (default: [])
  format              text, or json with one object per line (default: text)
  out                 file to write instead of standard output
  stream              print token by token (default: on a terminal, with one prompt)
  device              auto, cpu or gpu (default: auto)
  precision           auto, 32-true or bf16-true; auto is bf16-true if the hardware supports it (default: auto)
  tokenizer_name      tokenizer of a checkpoint that does not name one: embedded, gpt2 or bytes

Examples:
  python -m growlm.generate checkpoint=RUN_DIR/checkpoints/large_moe_final prompt="Once upon a time"
  python -m growlm.generate checkpoint=Llama-3.2-1B prompts_file=prompts.txt format=json out=texts.jsonl
"""


def main() -> None:
    """Run the command; exit by `sys.exit`."""
    sys.exit(
        run_key_value_command(
            USAGE,
            generate,
            partial(compose_command_config, "generate", GenerateCommand),
            schema=GenerateCommand,
        )
    )


def generate(arguments: list[str]) -> int:
    """Continue the prompts and return the exit code."""
    command = load_command_config("generate", GenerateCommand, arguments)
    check_output_path(command.out)
    if command.samples > 1 and command.temperature == 0:
        reason = "must be 1 with temperature=0, which gives the same text every time"
        raise UserError("samples", command.samples, reason)
    if command.temperature == 0 and (command.top_k or command.top_p < 1):
        key = "top_k" if command.top_k else "top_p"
        reason = "has no effect with temperature=0, which always takes the most likely token"
        raise UserError(key, getattr(command, key), reason)
    accelerator = resolve_accelerator(command.device, "device")
    pretrained, tokenizer = open_checkpoint(command.checkpoint, command.tokenizer_name)
    for token in command.stop_tokens:
        if not 0 <= token < tokenizer.vocab_size:
            reason = f"must be a token id from 0 to {tokenizer.vocab_size - 1}"
            raise UserError("stop_tokens", token, reason)
    max_seq_len = pretrained.config.max_seq_len
    prompts = read_prompts(command.prompt, command.prompts_file, tokenizer, max_seq_len)
    _warn_of_unknown_text(prompts)
    requests = [
        GenerationRequest(prompt, sample, command.seed + sample)
        for prompt in prompts
        for sample in range(command.samples)
    ]
    use_streaming = _should_stream(command, len(requests))
    dtype = _resolve_dtype(command.precision, accelerator)
    with make_stderr_console().status(f"reading {pretrained.folder}"):
        model = cast_weights(pretrained.load_model().eval(), dtype).to(torch_device(accelerator))
    start = time.perf_counter()
    with open_output(command.out) as write:
        run = _generate_streaming if use_streaming else _generate_in_batches
        continuations = run(command, model, tokenizer, requests, write)
    _print_summary(continuations, time.perf_counter() - start, max_seq_len)
    return 0


def _warn_of_unknown_text(prompts: Sequence[Prompt]) -> None:
    """Report the prompts that the tokenizer has no token for a part of, the first few one by one."""
    affected = [prompt for prompt in prompts if prompt.unknown.num_unknown_bytes]
    lines = [f"{prompt.text!r:.60}: {prompt.unknown.describe()}" for prompt in affected]
    more = [f"{len(lines) - MAX_WARNINGS:,} more prompts"] if len(lines) > MAX_WARNINGS else []
    for line in lines[:MAX_WARNINGS] + more:
        make_stderr_console().print(f"warning: {line}", markup=False, soft_wrap=True)


def _should_stream(command: GenerateCommand, num_requests: int) -> bool:
    """Return whether to print the text token by token."""
    can_stream = num_requests == 1 and command.format == "text" and command.out is None
    if command.stream and not can_stream:
        reason = "needs one prompt, one sample, format=text and no out"
        raise UserError("stream", command.stream, reason)
    return can_stream and (sys.stdout.isatty() if command.stream is None else command.stream)


def _resolve_dtype(precision: str, accelerator: str) -> torch.dtype:
    use_bf16 = has_native_bf16(accelerator) if precision == "auto" else precision == "bf16-true"
    return torch.bfloat16 if use_bf16 else torch.float32


def _generate_continuations(
    command: GenerateCommand,
    model: TransformerLM,
    tokenizer: Tokenizer,
    requests: Sequence[GenerationRequest],
    on_token: Callable[[int, int], object],
) -> list[Continuation]:
    return continue_prompts(
        model,
        [request.prompt.tokens for request in requests],
        command.max_new_tokens,
        Sampling(
            repetition_penalty=command.repetition_penalty,
            temperature=command.temperature,
            top_k=command.top_k,
            top_p=command.top_p,
        ),
        seeds=[request.seed for request in requests],
        stop_tokens={*tokenizer.eos_token_ids, *command.stop_tokens},
        num_token_ids=tokenizer.vocab_size,
        on_token=on_token,
    )


def _generate_streaming(
    command: GenerateCommand,
    model: TransformerLM,
    tokenizer: Tokenizer,
    requests: Sequence[GenerationRequest],
    write: WriteText,
) -> list[Continuation]:
    """Generate the only continuation, and write it token by token."""
    prompt = requests[0].prompt
    text = StreamingDetokenizer(tokenizer, prompt.tokens)
    write(prompt.text)
    continuations = _generate_continuations(
        command, model, tokenizer, requests, lambda _, token: write(text.push(token))
    )
    write(text.finish() + "\n")
    return continuations


def _generate_in_batches(
    command: GenerateCommand,
    model: TransformerLM,
    tokenizer: Tokenizer,
    requests: Sequence[GenerationRequest],
    write: WriteText,
) -> list[Continuation]:
    """Generate all continuations in order, and write them batch by batch."""
    done: list[Continuation] = []
    size = command.batch_size
    max_tokens = [
        min(command.max_new_tokens, model.config.max_seq_len - len(request.prompt.tokens))
        for request in requests
    ]
    total, counted = sum(max_tokens), 0
    ensure_ascii = command.out is None and not can_write_unicode()
    with CountProgressBar(make_stderr_console(), "generating", "tokens") as bar:

        def count(row: int, token: int) -> None:
            nonlocal counted
            counted += 1
            bar.update(counted, total)

        for first in range(0, len(requests), size):
            batch = requests[first : first + size]
            new = _generate_continuations(command, model, tokenizer, batch, count)
            pairs = zip(batch, new, strict=True)
            for number, (request, continuation) in enumerate(pairs, first + 1):
                if command.format == "json":
                    write(format_json_line(request, continuation, tokenizer, ensure_ascii))
                    continue
                if len(requests) > 1:
                    write(f"--- {number} of {len(requests)} ---\n")
                write(format_text(request, continuation, tokenizer))
            done += new
            counted = sum(max_tokens[: len(done)])  # also counts tokens after an early end
            bar.update(counted, total)
    return done


def _print_summary(continuations: Sequence[Continuation], seconds: float, max_seq_len: int) -> None:
    """Print the number of tokens, the speed, and how many texts were cut off."""
    num_tokens = sum(len(continuation.tokens) for continuation in continuations)
    console = make_stderr_console()
    speed = format_count(num_tokens / seconds)
    console.print(f"{num_tokens:,} tokens in {format_seconds(seconds)}, {speed} tokens/s")
    if num_full := sum(each.finish_reason == FULL for each in continuations):
        texts = (
            "The text ends"
            if len(continuations) == 1
            else f"{num_full:,} of {len(continuations):,} texts end"
        )
        console.print(f"{texts} at the model's context length (max_seq_len={max_seq_len})")


if __name__ == "__main__":
    run_main_and_exit(main)
