"""`python -m growlm.generate`: text from a checkpoint."""

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
from growlm.inference.prompts import read_prompts
from growlm.inference.sampling import Sampling
from growlm.inference.text_stream import StreamingDetokenizer
from growlm.model.transformer import TransformerLM
from growlm.reporting.console.plain_console import make_stderr_console
from growlm.reporting.console.progress_bars import CountProgressBar
from growlm.runtime.device import has_native_bf16, resolve_accelerator, torch_device
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import run_main_and_exit

USAGE = """
python -m growlm.generate checkpoint=DIR prompt="Once upon a time"
python -m growlm.generate checkpoint=DIR prompts_file=FILE format=json out=FILE

  checkpoint          folder of the model
  prompt              a text to continue; empty (prompt=) for a text from its beginning
  prompts_file        many: one a line, or .jsonl with the text under "prompt"
  max_new_tokens      tokens of a continuation, at most (128)
  temperature         0 takes the likeliest token every time (0.8)
  top_k, top_p        draw from the k likeliest tokens (0: all); from the fewest of probability p (1: all)
  repetition_penalty  above 1: tokens that are there already come less often (1)
  seed                of the draws (0)
  samples             continuations of each prompt (1)
  batch_size          continuations made at once (16)
  stop_tokens         ids that end a continuation besides the ends of text ([])
  format              text, or json: an object a line (text)
  out                 file to write, in place of standard output
  stream              print as tokens come; by itself with one prompt on a terminal
  device              auto, cpu, gpu (auto)
  precision           auto, 32-true, bf16-true (auto: bf16 where the processor multiplies it)
  tokenizer_name      for a checkpoint that does not say: embedded, gpt2, bytes
"""


def main() -> None:
    """The command."""
    sys.exit(
        run_key_value_command(
            USAGE, generate, partial(compose_command_config, "generate", GenerateCommand)
        )
    )


def generate(arguments: list[str]) -> int:
    """Continue the prompts; the exit code."""
    command = load_command_config("generate", GenerateCommand, arguments)
    check_output_path(command.out)
    if command.samples > 1 and command.temperature == 0:
        raise UserError("samples", command.samples, "temperature=0 gives the same text every time")
    accelerator = resolve_accelerator(command.device, "device")
    pretrained, tokenizer = open_checkpoint(command.checkpoint, command.tokenizer_name)
    for token in command.stop_tokens:
        if not 0 <= token < tokenizer.vocab_size:
            raise UserError("stop_tokens", token, f"ids are 0 to {tokenizer.vocab_size - 1}")
    longest = pretrained.config.max_seq_len
    prompts = read_prompts(command.prompt, command.prompts_file, tokenizer, longest)
    requests = [
        GenerationRequest(prompt, sample, command.seed + sample)
        for prompt in prompts
        for sample in range(command.samples)
    ]
    streams = _should_stream(command, len(requests))
    dtype = _resolve_dtype(command.precision, accelerator)
    with make_stderr_console().status(f"reading {pretrained.folder}"):
        model = cast_weights(pretrained.load_model().eval(), dtype).to(torch_device(accelerator))
    start = time.perf_counter()
    with open_output(command.out) as write:
        run = _generate_streaming if streams else _generate_in_batches
        found = run(command, model, tokenizer, requests, write)
    _print_summary(found, time.perf_counter() - start, longest)
    return 0


def _should_stream(command: GenerateCommand, num_requests: int) -> bool:
    """Whether text is printed as it is made."""
    allowed = "needs one prompt, one sample, format=text and no out"
    possible = num_requests == 1 and command.format == "text" and command.out is None
    if command.stream and not possible:
        raise UserError("stream", command.stream, allowed)
    return possible and (sys.stdout.isatty() if command.stream is None else command.stream)


def _resolve_dtype(precision: str, accelerator: str) -> torch.dtype:
    half = has_native_bf16(accelerator) if precision == "auto" else precision == "bf16-true"
    return torch.bfloat16 if half else torch.float32


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
    """The only request, written as it is made."""
    prompt = requests[0].prompt
    text = StreamingDetokenizer(tokenizer, prompt.tokens)
    write(prompt.text)
    found = _generate_continuations(
        command, model, tokenizer, requests, lambda _, token: write(text.push(token))
    )
    write(text.finish() + "\n")
    return found


def _generate_in_batches(
    command: GenerateCommand,
    model: TransformerLM,
    tokenizer: Tokenizer,
    requests: Sequence[GenerationRequest],
    write: WriteText,
) -> list[Continuation]:
    """All requests in order, written batch by batch."""
    found: list[Continuation] = []
    size = command.batch_size
    room = [
        min(command.max_new_tokens, model.config.max_seq_len - len(request.prompt.tokens))
        for request in requests
    ]
    total, counted = sum(room), 0
    with CountProgressBar(make_stderr_console(), "generating", "tokens") as bar:

        def count(row: int, token: int) -> None:
            nonlocal counted
            counted += 1
            bar.update(counted, total)

        for first in range(0, len(requests), size):
            batch = requests[first : first + size]
            new = _generate_continuations(command, model, tokenizer, batch, count)
            for number, (request, continuation) in enumerate(
                zip(batch, new, strict=True), first + 1
            ):
                if command.format == "json":
                    write(format_json_line(request, continuation, tokenizer))
                    continue
                if len(requests) > 1:
                    write(f"--- {number} of {len(requests)} ---\n")
                write(format_text(request, continuation, tokenizer))
            found += new
            counted = sum(room[: len(found)])  # those that ended early are done too
            bar.update(counted, total)
    return found


def _print_summary(found: Sequence[Continuation], seconds: float, longest: int) -> None:
    """How much, how fast, and what was cut short."""
    tokens = sum(len(continuation.tokens) for continuation in found)
    console = make_stderr_console()
    console.print(f"{tokens:,} tokens in {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s")
    if full := sum(continuation.finish_reason == FULL for continuation in found):
        what = "The text ends" if len(found) == 1 else f"{full:,} of {len(found):,} texts end"
        console.print(f"{what} where the model reads no further (max_seq_len={longest})")


if __name__ == "__main__":
    run_main_and_exit(main)
