"""Grow small models in ways that are pinned: `python tests/machines/golden_growth.py` prints what they become.

The models' weights are plain fractions, and every setting is spelled out, so that what a growth gives follows from
growth's own code alone. `golden_growth.json` holds what it gave when it was written; `test_golden_growth.py`
compares. To pin a deliberate change of growth's random numbers, write the file again with `--write`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from growlm.growth import grow
from growlm.growth.operators.registry import operators_from_dicts
from growlm.model import ModelConfig, TransformerLM

FILE = Path(__file__).with_suffix(".json")
GPT = {
    "vocab_size": 37,
    "d_model": 16,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 4,
    "head_dim": 4,
    "d_ff": 24,
    "max_seq_len": 64,
    "norm": "layernorm",
    "feed_forward": "gelu",
    "bias": True,
    "tie_embeddings": True,
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "num_experts": 0,
    "top_k": 2,
    "router_balance_weight": 1e-2,
    "router_z_weight": 0.0,
    "router_bias_step": 0.0,
    "router_tie_breaking": False,
}
LLAMA = GPT | {
    "n_kv_heads": 2,
    "norm": "rmsnorm",
    "feed_forward": "swiglu",
    "bias": False,
    "tie_embeddings": False,
}
UPCYCLE = {
    "num_experts": 4,
    "top_k": 2,
    "router_init": "normal",
    "router_std": 0.02,
    "break_ties": True,
    "granularity": 1,
    "drop_fraction": 0.0,
}
WIDEN = {
    "scale_factor": 1.5,
    "d_model": None,
    "n_heads": None,
    "d_ff": None,
    "noise_std": 0.02,
    "noise_snr_db": None,
    "filler": "random",
    "split": "equal",
    "new_channels": "copies",
}
FRESH = WIDEN | {"noise_std": None, "new_channels": "fresh"}
DEEPEN = {"extra_layers": 2, "placement": "interleave", "init": "fresh"}
MULTIPLY = {"factor": 2, "top_k": 2, "noise_std": 0.01, "tie_breaking_std": 1e-3}
CASES: dict[str, tuple[int, dict[str, Any], list[dict[str, Any]]]] = {
    "experts": (1, GPT, [{"upcycle": UPCYCLE}]),
    "finer experts, part redrawn": (
        2,
        LLAMA,
        [{"upcycle": UPCYCLE | {"granularity": 2, "drop_fraction": 0.5}}],
    ),
    "copies with noise": (3, LLAMA, [{"widen": WIDEN | {"scale_factor": 2}}]),
    "fresh channels": (4, GPT, [{"widen": FRESH}]),
    "fresh blocks": (5, LLAMA, [{"deepen": DEEPEN}]),
    "all in a row": (
        6,
        GPT,
        [
            {"upcycle": UPCYCLE},
            {"multiply_experts": MULTIPLY},
            {"widen": WIDEN},
            {"deepen": DEEPEN},
        ],
    ),
}
"""By name: seed, model, operators."""


def plain_model(config: dict[str, Any]) -> TransformerLM:
    """Return a model whose weights are fractions that every processor knows exactly."""
    model = TransformerLM(ModelConfig(**config))
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            numbers = torch.arange(parameter.numel()) * (7919 + 2 * index) % 257 - 128
            parameter.copy_(numbers.view(parameter.shape).float() / 512)
            if parameter.ndim == 1:  # gains near one
                parameter += 0.75
    return model.eval()


def grown(name: str) -> TransformerLM:
    """Return what a case grows into."""
    seed, config, operators = CASES[name]
    return grow(plain_model(config), operators_from_dicts(operators), seed, boundary_index=seed % 3)


def weights_hash(model: TransformerLM) -> str:
    """Return a checksum of all weights, to the bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def figures(model: TransformerLM) -> dict[str, list[float]]:
    """Return what holds on every machine to rounding: sums over the weights, and three logits."""
    doubles = [tensor.double().flatten() for _, tensor in sorted(model.state_dict().items())]
    sums = [
        torch.stack([d.sum() for d in doubles]),
        torch.stack([d.square().sum() for d in doubles]),
    ]
    waves = [(d * torch.sin(torch.arange(len(d)).double())).sum() for d in doubles]
    with torch.no_grad():
        logits = model.double()(torch.tensor([[1, 5, 9, 30, 2, 17]]))[0, -1, :3]
    found = {
        "sums": [float(s.sum()) for s in (*sums, torch.stack(waves))],
        "logits": logits.tolist(),
    }
    return {key: [round(value, 7) for value in values] for key, values in found.items()}


def kind() -> str:
    """Return which of two ways torch computes random numbers in: they differ in the last bits."""
    vectorized = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return "avx2, avx512" if vectorized else "default"


def main() -> None:
    """Print what the cases give, or write it, keeping what other kinds of machine gave."""
    found: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in CASES:
        model = grown(name)
        hashes = found.get(name, {}).get("hashes", {}) | {kind(): weights_hash(model)}
        found[name] = {"hashes": hashes, **figures(model)}
    text = json.dumps(found, indent=1) + "\n"
    if "--write" in sys.argv:
        FILE.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
