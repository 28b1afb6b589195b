"""Tokens per second: a bare loop on our model, and on Hugging Face transformers of the same shape.

    python scripts/bench_throughput.py                         (every case; about 15 minutes on two cores)
    python scripts/bench_throughput.py dense-bf16 moe-bf16     (some)
    python scripts/bench_throughput.py --json FILE --rounds 7

Same shape, batch, dtype and optimizer (AdamW, fused) on all sides, taken in turns; medians over the rounds.
GPT-NeoX with sequential residual stands for the LayerNorm family, Mixtral for the mixture of experts, with the
faster of its own experts implementations.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import growlm  # noqa: F401 - before torch: it sets how threads wait

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from growlm.model import ModelConfig, TransformerLM, experts
from growlm.training.hardware import keep_freed_memory

BATCH, TIME = 8, 256
DENSE = ModelConfig(
    vocab_size=2048, d_model=512, n_layers=5, n_heads=8, n_kv_heads=8, head_dim=64, d_ff=2048,
    max_seq_len=TIME,
)  # fmt: skip
MIXTURE = replace(
    DENSE, norm="rmsnorm", feed_forward="swiglu", bias=False, tie_embeddings=False, num_experts=8
)
Step = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """What is compared, and what our bare loop should reach of transformers' rate."""

    config: ModelConfig
    bf16: bool
    aim: float


CASES = {
    "dense-bf16-gpt2": Case(replace(DENSE, vocab_size=50257), True, 1.5),
    "dense-bf16": Case(DENSE, True, 1.1),
    "moe-bf16": Case(MIXTURE, True, 1.5),
    "dense-fp32": Case(DENSE, False, 1.0),
    "moe-fp32": Case(MIXTURE, False, 1.15),
}


def training_step(model: nn.Module, loss_of: Callable[[Tensor], Tensor], bf16: bool) -> Step:
    """One optimizer step on random tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    vocabulary = next(model.parameters()).shape[0]
    batch = torch.randint(vocabulary, (BATCH, TIME + 1))

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def unpadded(step: Step) -> Step:
    """The step with as many rows for each expert as it has tokens."""

    def without_padding() -> None:
        with mock.patch.object(experts, "CPU_ROWS", 1):
            step()

    return without_padding


def ours(case: Case) -> Step:
    """Our model in a bare loop."""
    model = TransformerLM(case.config)

    def loss_of(batch: Tensor) -> Tensor:
        routings: list = []
        loss = model.loss(batch, routings)
        if routings:
            loss = loss + 1e-2 * torch.stack([r.balance_loss() for r in routings]).mean()
        return loss

    return training_step(model, loss_of, case.bf16)


def theirs(case: Case, experts: str = "grouped_mm") -> Step:
    """The same shape in transformers."""
    c = case.config
    shape = {
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "intermediate_size": c.d_ff,
        "max_position_embeddings": c.max_seq_len,
        "tie_word_embeddings": c.tie_embeddings,
        "use_cache": False,
        "attn_implementation": "sdpa",
    }
    if c.is_moe:
        config = transformers.MixtralConfig(
            **shape, num_key_value_heads=c.n_kv_heads, num_local_experts=c.num_experts,
            num_experts_per_tok=c.top_k, output_router_logits=True, router_aux_loss_coef=1e-2,
            experts_implementation=experts, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model: nn.Module = transformers.MixtralForCausalLM(config)
    else:
        config = transformers.GPTNeoXConfig(
            **shape, rotary_pct=1.0, use_parallel_residual=False, hidden_act="gelu",
            attention_dropout=0.0, hidden_dropout=0.0, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model = transformers.GPTNeoXForCausalLM(config)
    model.train()

    def loss_of(batch: Tensor) -> Tensor:
        return model(input_ids=batch[:, :-1], labels=batch[:, :-1]).loss

    return training_step(model, loss_of, case.bf16)


def sides_of(case: Case) -> dict[str, Step]:
    """All that take turns."""
    if not case.config.is_moe:
        return {"growlm": ours(case), "transformers": theirs(case)}
    return {
        "growlm": ours(case),
        "growlm (rows not padded)": unpadded(ours(case)),
        "transformers": theirs(case, "grouped_mm"),
        "transformers (eager)": theirs(case, "eager"),
    }


def seconds_per_step(sides: dict[str, Step], rounds: int, steps: int) -> dict[str, list[float]]:
    """Each round every side takes its turn of a few steps."""
    for step in sides.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, step in sides.items():
            start = time.perf_counter()
            for _ in range(steps):
                step()
            seconds[name].append((time.perf_counter() - start) / steps)
    return seconds


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="case")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()  # for all sides
    table = Table("case", "side", "tokens/s", "ours / theirs", "aim")
    results = {}
    for name in arguments.cases:
        case = CASES[name]
        seconds = seconds_per_step(sides_of(case), arguments.rounds, arguments.steps)
        rates = {side: BATCH * TIME / statistics.median(s) for side, s in seconds.items()}
        best = max(rate for side, rate in rates.items() if side.startswith("transformers"))
        ratio = rates["growlm"] / best
        results[name] = {"tokens_per_second": rates, "ratio": ratio, "seconds": seconds}
        for side, rate in rates.items():
            last = (f"{ratio:.2f}", f"{case.aim:.2f}") if side == "growlm" else ("", "")
            table.add_row(name, side, f"{rate:,.0f}", *last)
        gc.collect()
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
