"""Measure how much each growth changes the logits, in fp64 and fp32, and print a table.

    python scripts/lossless_table.py                    (half a minute on two cores)
    python scripts/lossless_table.py outputs/lossless.json

The models have 128 channels and 4 layers, and every parameter is moved away from its initial value. The table
shows the worst of both families, tied and untied. Deepening by plain copies is there for comparison: it is not
lossless.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from growlm.growth import Deepen, Operator, Upcycle, Widen, grow
from growlm.model import ModelConfig, TransformerLM
from growlm.model.keyed_rng import keyed_generator, keyed_normal
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.verification import ModelComparison

DEFAULT = ModelConfig(
    vocab_size=1024, d_model=128, n_layers=4, n_heads=8, n_kv_heads=8, head_dim=16, d_ff=512
)
LLAMA = replace(DEFAULT, norm="rmsnorm", feed_forward="swiglu", bias=False, n_kv_heads=4)
GROWTHS: list[tuple[str, bool, list[Operator]]] = [
    ("upcycle to 8 experts", False, [Upcycle(num_experts=8)]),
    *(
        (f"widen ×{f:g}, noise 0.02", False, [Widen(scale_factor=f, noise_std=0.02)])
        for f in (1.5, 2, 3)
    ),
    *(
        (f"widen ×{f:g}, noise 0.02 (8 experts)", True, [Widen(scale_factor=f, noise_std=0.02)])
        for f in (1.5, 2, 3)
    ),
    *(
        (f"widen ×{f:g}, fresh (8 experts)", True, [Widen(scale_factor=f, new_channels="fresh")])
        for f in (1.5, 2, 3)
    ),
    (
        "widen ×1.5 twice",
        True,
        [
            Widen(scale_factor=1.5, new_channels="copies"),
            Widen(scale_factor=1.5, new_channels="copies"),
        ],
    ),
    ("deepen by 4, identity", True, [Deepen(extra_layers=4, init="identity")]),
    ("deepen by 4, fresh", True, [Deepen(extra_layers=4, init="fresh")]),
    (
        "upcycle, widen ×1.5, deepen by 2",
        False,
        [
            Upcycle(),
            Widen(scale_factor=1.5, new_channels="copies"),
            Deepen(extra_layers=2, init="identity"),
        ],
    ),
    ("deepen by 4, plain copies", True, [Deepen(extra_layers=4, init="copy")]),
]


def build_models(experts: bool, dtype: torch.dtype) -> Iterable[TransformerLM]:
    """Yield models of both families, tied and untied."""
    for family in (DEFAULT, LLAMA):
        for tied in (True, False):
            config = replace(family, tie_embeddings=tied, num_experts=8 if experts else 0)
            model = TransformerLM(config)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter += 0.02 * keyed_normal(tuple(parameter.shape), "moved", name)
            yield model.to(dtype)


def measure_change(operators: list[Operator], model: TransformerLM) -> tuple[float, float]:
    """Return the largest difference of logits and the change of the loss on a random probe."""
    probe = torch.randint(1024, (4, 64), generator=keyed_generator("probe"))
    comparison = ModelComparison(model, grow(model, operators), probe)
    return comparison.max_logit_difference, comparison.new_trace.loss - comparison.old_trace.loss


def main() -> None:
    """Print the table; write it as JSON if a path is given."""
    rows = []
    for name, experts, operators in track(GROWTHS, description="growing"):
        row: dict[str, str | float] = {"growth": name}
        for label, dtype in (("fp64", torch.float64), ("fp32", torch.float32)):
            changes = [measure_change(operators, model) for model in build_models(experts, dtype)]
            row[label] = max(logits for logits, _ in changes)
            row[f"{label}_loss"] = max(abs(loss) for _, loss in changes)
        rows.append(row)
    table = Table("growth", "fp64 logits", "fp32 logits", "fp32 loss")
    for row in rows:
        figures = (f"{row[key]:.1e}" for key in ("fp64", "fp32", "fp32_loss"))
        table.add_row(str(row["growth"]), *figures)
    Console().print(table)
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    run_main_and_exit(main)
