"""New tokens per second: growlm.generate's engine, and Hugging Face transformers' `generate` of the same model.

    python scripts/bench_generate.py                           (every case; about 12 minutes on two cores)
    python scripts/bench_generate.py gpt_neox-1-bf16 mixtral-16-fp32      (some)
    python scripts/bench_generate.py --json FILE --rounds 7

The same weights (`growlm.convert`), prompts and dtype, greedy, no end of text, every side in a process of its own,
in turns; medians over the rounds. A turn continues `batch` prompts of 64 tokens by 64 new ones, reading them
included. GPT-NeoX with sequential residual stands for the LayerNorm family, Llama (grouped-query attention) for
the other, Mixtral for the mixture of experts, with each of its own experts implementations; the best counts.
Equal tokens are counted up to where a text first differs: in bf16 a near tie sends it another way.
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
"""Of its implementations. One more, `batched_mm`, copies the experts' weights for every token: it is tried with
one prompt only, 16 would take 38 GB."""
AIM = 1.0


@dataclass(frozen=True)
class Side:
    """What generates in one process."""

    model: str
    batch: int
    bf16: bool
    library: str = "growlm"
    experts: str | None = None
    """Mixtral's implementation."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return torch.bfloat16 if self.bf16 else torch.float32


def sides_of(model: str, batch: int, bf16: bool) -> dict[str, Side]:
    """Ours first, then theirs."""
    ours = Side(model, batch, bf16)
    sides = {"growlm": ours}
    kinds: tuple[str | None, ...] = (None,)
    if model == "mixtral":
        kinds = MIXTRAL_EXPERTS + (("batched_mm",) if batch == 1 else ())
    for experts in kinds:
        name = f"transformers {experts}" if experts else "transformers"
        sides[name] = replace(ours, library="transformers", experts=experts)
    return sides


CASES = {
    f"{model}-{batch}-{'bf16' if bf16 else 'fp32'}": sides_of(model, batch, bf16)
    for model in MODELS
    for batch in (1, 16)
    for bf16 in (False, True)
}


def one_turn(side: Side) -> Step:
    """Continues the prompts; gives the new tokens, a list for each."""
    config = MODELS[side.model]
    drawn = torch.randint(
        config.vocab_size, (side.batch, PROMPT), generator=torch.Generator().manual_seed(0)
    )
    model = TransformerLM(config)
    if side.library == "growlm":
        model = cast_weights(model, side.dtype)
        prompts = drawn.tolist()

        def step() -> list[list[int]]:
            return [text.tokens for text in generate(model, prompts, NEW, Sampling(temperature=0))]

        return step
    their_model = theirs(model, side)
    mask = torch.ones_like(drawn)

    def their_step() -> list[list[int]]:
        out = their_model.generate(
            drawn, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
        )
        return out[:, PROMPT:].tolist()

    return their_step


def agreement(sides: dict[str, Side]) -> float:
    """Share of the new tokens, up to where a text first differs, that both libraries choose."""
    ours, other = (one_turn(side)() for side in list(sides.values())[:2])
    assert all(len(text) == NEW for text in ours + other)
    equal = sum(next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), NEW)
                for x, y in zip(ours, other, strict=True))  # fmt: skip
    return equal / (NEW * len(ours))


def theirs(ours: TransformerLM, side: Side) -> nn.Module:
    """The same model in transformers, by `growlm.convert`."""
    with suppress_torchao_notices():
        from transformers import modeling_utils  # noqa: F401 - it imports torchao
    transformers.utils.logging.disable_progress_bar()
    with TemporaryDirectory() as folder:
        save_model(ours, Path(folder) / "ours", {})
        to_huggingface(Path(folder) / "ours", Path(folder) / "theirs")
        return transformers.AutoModelForCausalLM.from_pretrained(
            Path(folder) / "theirs",
            dtype=side.dtype,
            attn_implementation="sdpa",
            **({} if side.experts is None else {"experts_implementation": side.experts}),
        ).eval()


def main() -> None:
    """Measure, print, write."""
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
            {side: Steps(one_turn, (settings,), warmup=1) for side, settings in sides.items()},
            arguments.rounds,
            arguments.turns,
        )
        rates = {side: sides[side].batch * NEW / m.median for side, m in measured.items()}
        ours = rates["growlm"]
        ratio = ours / max(rate for side, rate in rates.items() if side != "growlm")
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
            table.add_row(side, f"{rate:,.1f}", f"{rate / ours:.2f}", memory)
        table.caption = (
            f"against the best of transformers: {ratio:.2f} (aim {AIM}); equal tokens: {equal:.0%}"
        )
        console.print(table)
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
