"""Compare the training speed of growlm's model with that of Hugging Face transformers at the same shape.

    python scripts/bench_throughput.py                         (every case; about 15 minutes on two cores)
    python scripts/bench_throughput.py dense-bf16 moe-bf16     (these cases)
    python scripts/bench_throughput.py --json FILE --rounds 7

Each side is a bare training loop with the same shape, batch, dtype and optimizer (AdamW, fused), in its own
process; the sides run in turns, and the figures are medians over the rounds. GPT-NeoX with sequential residual
stands for the LayerNorm family, and Mixtral for mixtures of experts, with each of its experts implementations; the
fastest counts.

growlm keeps freed memory (`trainer.keep_freed_memory`), and transformers leaves the allocator alone; every side is
also measured the other way. The other cases compare growlm with itself: bf16 with fp32, a mixture of experts
with a dense model of equal active FLOPs, and attention within documents (`data.document_mask`) with attention
across them.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from turns import Step, Steps, take_turns  # isort: skip - imports growlm before torch

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from growlm.model import ModelConfig, TransformerLM, document_positions
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.runtime.memory import keep_freed_memory
from growlm.runtime.optional_packages import require_package
from growlm.runtime.torchao_notices import suppress_torchao_notices

try:
    import transformers
except ModuleNotFoundError:
    require_package("transformers", "'growlm[huggingface]'")
    raise

TIME = 256
DENSE = ModelConfig(
    vocab_size=2048, d_model=512, n_layers=5, n_heads=8, n_kv_heads=8, head_dim=64, d_ff=2048,
    max_seq_len=TIME,
)  # fmt: skip
MIXTURE = replace(
    DENSE, norm="rmsnorm", feed_forward="swiglu", bias=False, tie_embeddings=False, num_experts=8
)
EOS = 0
MIXTRAL_EXPERTS = ("eager", "grouped_mm")
"""Experts implementations that are compared. `batched_mm` is left out: it copies the experts' weights for every
token, 34 GB here."""


@dataclass(frozen=True)
class Side:
    """Settings of one process that trains."""

    config: ModelConfig
    bf16: bool = True
    sequences: int = 8
    library: str = "growlm"
    experts: str | None = None
    """Experts implementation of Mixtral in transformers."""
    keeps_memory: bool = True
    """Whether freed memory is kept."""
    document_tokens: int | None = None
    """Mean length of the documents that attention stays within; None for attention to all earlier tokens."""

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.config.max_seq_len


@dataclass(frozen=True)
class Case:
    """Sides to compare; the first should reach `aim` times the best rate of those it is compared with."""

    sides: dict[str, Side]
    aim: float
    against: str
    """Prefix of the names of the sides that the first is compared with."""


def against_transformers(config: ModelConfig, bf16: bool, aim: float) -> Case:
    """Return the case that compares growlm with transformers."""
    growlm_side = Side(config, bf16)
    sides = {"growlm": growlm_side}
    if not config.is_moe:  # all sides of a mixture together would need 24 GB
        sides["growlm, memory not kept"] = replace(growlm_side, keeps_memory=False)
    for experts in MIXTRAL_EXPERTS if config.is_moe else (None,):
        name = f" {experts}" if experts else ""
        hf_side = replace(growlm_side, library="transformers", experts=experts)
        sides[f"transformers{name}"] = replace(hf_side, keeps_memory=False)
        sides[f"with memory kept, transformers{name}"] = hf_side
    return Case(sides, aim, "transformers")


def against_fp32() -> Case:
    """Return the case that compares bf16 with fp32."""
    return Case({"bf16": Side(DENSE), "fp32": Side(DENSE, bf16=False)}, 2.5, "fp32")


def against_dense() -> Case:
    """Return the case that compares a mixture with a dense model of equal FLOPs per token, the router apart."""
    dense = replace(MIXTURE, num_experts=0, d_ff=MIXTURE.top_k * MIXTURE.d_ff)
    sides = {"mixture": Side(MIXTURE, sequences=16), "dense": Side(dense, sequences=16)}
    return Case(sides, 0.7, "dense")


def documents_apart(length: int, bf16: bool, aim: float, **changes: Any) -> Case:
    """Return the case that compares attention within documents with attention to all earlier tokens."""
    config = replace(DENSE, max_seq_len=length, **changes)
    across = Side(config, bf16, sequences=8 * TIME // length)
    sides = {"within documents": replace(across, document_tokens=200), "across documents": across}
    return Case(sides, aim, "across")


CASES = {
    "dense-bf16-gpt2": against_transformers(replace(DENSE, vocab_size=50257), True, 1.5),
    "dense-bf16": against_transformers(DENSE, True, 1.1),
    "moe-bf16": against_transformers(MIXTURE, True, 1.5),
    "dense-fp32": against_transformers(DENSE, False, 1.0),
    "moe-fp32": against_transformers(MIXTURE, False, 1.15),
    "bf16-fp32": against_fp32(),
    "moe-dense": against_dense(),
    "documents-256-bf16": documents_apart(256, True, 0.9),
    "documents-256-fp32": documents_apart(256, False, 0.9),
    "documents-1024-bf16": documents_apart(1024, True, 0.8),
    "documents-1024-fp32": documents_apart(1024, False, 0.8),
}


def make_training_step(side: Side) -> Step:
    """Return one optimizer step on random tokens."""
    if side.keeps_memory:
        keep_freed_memory()
    torch.manual_seed(0)
    model, loss_of = growlm_model(side) if side.library == "growlm" else hf_model(side)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batch = torch.randint(1, side.config.vocab_size, (side.sequences, side.length + 1))
    if side.document_tokens is not None:
        batch[torch.rand(batch.shape) < 1 / side.document_tokens] = EOS

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=side.bf16):
            loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def growlm_model(side: Side) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Return growlm's model and its loss."""
    model = TransformerLM(side.config)

    def loss_of(batch: Tensor) -> Tensor:
        routings: list = []
        is_masked = side.document_tokens is not None
        positions = document_positions(batch, EOS) if is_masked else None
        loss = model.loss(batch, routings, positions)
        if routings:
            loss = loss + 1e-2 * torch.stack([r.balance_loss() for r in routings]).mean()
        return loss

    return model, loss_of


def hf_model(side: Side) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Return a transformers model of the same shape and its loss."""
    with suppress_torchao_notices():
        from transformers import modeling_utils  # noqa: F401 - it imports torchao

    c = side.config
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
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if c.is_moe:
        config = transformers.MixtralConfig(
            **shape, num_key_value_heads=c.n_kv_heads, num_local_experts=c.num_experts,
            num_experts_per_tok=c.top_k, output_router_logits=True, router_aux_loss_coef=1e-2,
            experts_implementation=side.experts,
        )  # fmt: skip
        model: nn.Module = transformers.MixtralForCausalLM(config)
    else:
        config = transformers.GPTNeoXConfig(
            **shape, rotary_pct=1.0, use_parallel_residual=False, hidden_act="gelu",
            attention_dropout=0.0, hidden_dropout=0.0,
        )  # fmt: skip
        model = transformers.GPTNeoXForCausalLM(config)
    model.train()
    return model, lambda batch: model(input_ids=batch[:, :-1], labels=batch[:, :-1]).loss


def main() -> None:
    """Measure the cases and print a table for each; write them as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="case")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    console = Console()
    results = {}
    for name in arguments.cases:
        case = CASES[name]
        measured = take_turns(
            {side: Steps(make_training_step, (settings,)) for side, settings in case.sides.items()},
            arguments.rounds,
            arguments.steps,
        )
        rates = {
            side: case.sides[side].sequences * case.sides[side].length / m.median
            for side, m in measured.items()
        }
        first = next(iter(rates))
        ratio = rates[first] / max(r for side, r in rates.items() if side.startswith(case.against))
        results[name] = {
            "ratio": ratio,
            "aim": case.aim,
            "sides": {
                side: m.to_json() | {"tokens_per_second": rates[side]}
                for side, m in measured.items()
            },
        }
        table = Table("side", "tokens/s", "of the first", "peak memory", title=name, min_width=72)
        for side, rate in rates.items():
            share, memory = f"{rate / rates[first]:.2f}", measured[side].peak_memory / 1e9
            table.add_row(side, f"{rate:,.0f}", share, f"{memory:.2f} GB")
        table.caption = f"{first} against {case.against}: {ratio:.2f} (aim {case.aim})"
        console.print(table)
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    run_main_and_exit(main)
