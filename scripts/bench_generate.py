"""Compare the generation speed of growlm with that of Hugging Face transformers on the same model.

    python scripts/bench_generate.py                           (every case; about 12 minutes on two cores)
    python scripts/bench_generate.py gpt_neox-1-bf16 mixtral-16-fp32      (these cases)
    python scripts/bench_generate.py --json FILE --rounds 7

Both sides use the same weights (`growlm.convert`), prompts and dtype; decoding is greedy and ignores the end of
text. Each side runs in its own process, in turns; the figures are medians over the rounds. A turn continues
`batch` prompts of 64 tokens by 64 new ones, prefill included. GPT-NeoX with sequential residual stands for the
LayerNorm family, Llama (grouped-query attention) for the RMSNorm family, and Mixtral for mixtures of experts, with
each of its experts implementations; the fastest counts. Equal tokens are counted up to the first difference in a
text, because in bf16 a near tie changes all that follows.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from turns import Step, Steps, take_turns  # isort: skip - imports growlm before torch

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from growlm.checkpoint import save_model
from growlm.huggingface import to_huggingface
from growlm.inference.generation import generate
from growlm.inference.precision import cast_weights
from growlm.inference.sampling import Sampling
from growlm.model import ModelConfig, TransformerLM
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.runtime.optional_packages import require_package
from growlm.runtime.torchao_notices import suppress_torchao_notices

try:
    import transformers
except ModuleNotFoundError:
    require_package("transformers", "'growlm[huggingface]'")
    raise

PROMPT, NEW = 64, 64
GPT_NEOX = ModelConfig(
    vocab_size=50257, d_model=512, n_layers=8, n_heads=8, n_kv_heads=8, head_dim=64, d_ff=2048,
    max_seq_len=1024, tie_embeddings=False,
)  # fmt: skip
LLAMA = replace(GPT_NEOX, norm="rmsnorm", feed_forward="swiglu", bias=False, n_kv_heads=2)
MIXTRAL = replace(LLAMA, n_kv_heads=8, num_experts=8)
MODELS = {"gpt_neox": GPT_NEOX, "llama": LLAMA, "mixtral": MIXTRAL}
MIXTRAL_EXPERTS = ("eager", "grouped_mm")
"""Experts implementations of transformers that are compared. `batched_mm` copies the experts' weights for every
token, so it runs with one prompt only: 16 would take 38 GB."""
AIM = 1.0


@dataclass(frozen=True)
class Side:
    """Settings of one process that generates."""

    model: str
    batch: int
    bf16: bool
    library: str = "growlm"
    experts: str | None = None
    """Experts implementation of Mixtral in transformers."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return torch.bfloat16 if self.bf16 else torch.float32


def make_sides(model: str, batch: int, bf16: bool) -> dict[str, Side]:
    """Return the sides of a case by name, growlm first."""
    growlm_side = Side(model, batch, bf16)
    sides = {"growlm": growlm_side}
    kinds: tuple[str | None, ...] = (None,)
    if model == "mixtral":
        kinds = MIXTRAL_EXPERTS + (("batched_mm",) if batch == 1 else ())
    for experts in kinds:
        name = f"transformers {experts}" if experts else "transformers"
        sides[name] = replace(growlm_side, library="transformers", experts=experts)
    return sides


CASES = {
    f"{model}-{batch}-{'bf16' if bf16 else 'fp32'}": make_sides(model, batch, bf16)
    for model in MODELS
    for batch in (1, 16)
    for bf16 in (False, True)
}


def make_step(side: Side) -> Step:
    """Return a function that continues the prompts and returns the new tokens, a list for each prompt."""
    config = MODELS[side.model]
    prompts = torch.randint(
        config.vocab_size, (side.batch, PROMPT), generator=torch.Generator().manual_seed(0)
    )
    model = TransformerLM(config)
    if side.library == "growlm":
        model = cast_weights(model, side.dtype)
        prompt_lists = prompts.tolist()

        def step() -> list[list[int]]:
            return [
                text.tokens for text in generate(model, prompt_lists, NEW, Sampling(temperature=0))
            ]

        return step
    hf_model = to_transformers(model, side)
    mask = torch.ones_like(prompts)

    def hf_step() -> list[list[int]]:
        out = hf_model.generate(
            prompts, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
        )
        return out[:, PROMPT:].tolist()

    return hf_step


def agreement(sides: dict[str, Side]) -> float:
    """Return the share of new tokens, up to the first difference in each text, that both libraries choose."""
    growlm_texts, hf_texts = (make_step(side)() for side in list(sides.values())[:2])
    assert all(len(text) == NEW for text in growlm_texts + hf_texts)
    equal = sum(next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), NEW)
                for x, y in zip(growlm_texts, hf_texts, strict=True))  # fmt: skip
    return equal / (NEW * len(growlm_texts))


def to_transformers(model: TransformerLM, side: Side) -> nn.Module:
    """Convert a model to transformers, as `growlm.convert` does."""
    with suppress_torchao_notices():
        from transformers import modeling_utils  # noqa: F401 - it imports torchao
    transformers.utils.logging.disable_progress_bar()
    with TemporaryDirectory() as folder:
        save_model(model, Path(folder) / "growlm", {})
        to_huggingface(Path(folder) / "growlm", Path(folder) / "transformers")
        return transformers.AutoModelForCausalLM.from_pretrained(
            Path(folder) / "transformers",
            dtype=side.dtype,
            attn_implementation="sdpa",
            **({} if side.experts is None else {"experts_implementation": side.experts}),
        ).eval()


def main() -> None:
    """Measure the cases and print a table for each; write them as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="case")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=1, help="continuations in a round")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    console = Console()
    results = {}
    for name in arguments.cases:
        sides = CASES[name]
        measured = take_turns(
            {side: Steps(make_step, (settings,), warmup=1) for side, settings in sides.items()},
            arguments.rounds,
            arguments.turns,
        )
        rates = {side: sides[side].batch * NEW / m.median for side, m in measured.items()}
        growlm_rate = rates["growlm"]
        ratio = growlm_rate / max(rate for side, rate in rates.items() if side != "growlm")
        equal = agreement(sides)
        results[name] = {
            "ratio": ratio,
            "equal_tokens": equal,
            "aim": AIM,
            "sides": {
                side: m.to_json() | {"tokens_per_second": rates[side]}
                for side, m in measured.items()
            },
        }
        table = Table("side", "new tokens/s", "of ours", "peak memory", title=name, min_width=72)
        for side, rate in rates.items():
            memory = f"{measured[side].peak_memory / 1e9:.2f} GB"
            table.add_row(side, f"{rate:,.1f}", f"{rate / growlm_rate:.2f}", memory)
        table.caption = (
            f"against the best of transformers: {ratio:.2f} (aim {AIM}); equal tokens: {equal:.0%}"
        )
        console.print(table)
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    run_main_and_exit(main)
