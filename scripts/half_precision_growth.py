"""Measure how much the growth of bf16 and fp16 weights changes sums of copies, logits and choices of experts.

    python scripts/half_precision_growth.py                 (two minutes on two cores)
    python scripts/half_precision_growth.py --dtypes bfloat16 --json outputs/half_precision.json

Each row is one growth of a random Llama or Mixtral (256 channels, 6 blocks, gains spread around 1). Old and grown
model are compared twice: both converted to fp32, which shows what happened to the weights alone; and both run in
half precision, which adds the rounding of every product. The first line of each model says how far its own run in
half precision is from that in fp32. "share" is the standard deviation of the change as a share of that of the
logits, "expected" what `growlm grow` says it will be.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from growlm.growth import (
    Deepen,
    GrowthMap,
    MultiplyExperts,
    Operator,
    Upcycle,
    Widen,
    build_growth_map,
    grow,
)
from growlm.model import ModelConfig, TransformerLM
from growlm.model.axes import Role, axes_table
from growlm.model.keyed_rng import keyed_generator, keyed_normal
from growlm.model.layers.routing import Routing
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.verification.comparison import NEAR_TIE_MARGIN

LLAMA = ModelConfig.preset(
    "llama", vocab_size=2048, d_model=256, n_layers=6, n_heads=8, n_kv_heads=4, d_ff=688,
    tie_embeddings=False,
)  # fmt: skip
WIDENINGS: dict[str, list[Operator]] = {
    "×2, fresh (the default)": [Widen(scale_factor=2)],
    "×2, copies, no noise": [Widen(scale_factor=2, noise_std=0.0)],
    "×2, copies, noise 1e-2": [Widen(scale_factor=2, noise_std=1e-2)],
    "×2, copies, split 1:2": [Widen(scale_factor=2, split="1:2", noise_std=0.0)],
    "×1.5, fresh": [Widen(scale_factor=1.5)],
    "×1.5, copies, noise 1e-2": [Widen(scale_factor=1.5, noise_std=1e-2)],
    "×3, copies, no noise": [Widen(scale_factor=3, noise_std=0.0)],
    "×3, copies, noise 1e-2": [Widen(scale_factor=3, noise_std=1e-2)],
    "×4, fresh": [Widen(scale_factor=4)],
    "deepen by 2": [Deepen(extra_layers=2)],
}
UPCYCLE: dict[str, list[Operator]] = {"upcycle to 8 experts": [Upcycle(num_experts=8)]}
MULTIPLY: dict[str, list[Operator]] = {
    "8 to 16 experts, noise 1e-2": [MultiplyExperts(2, noise_std=1e-2)]
}
MODELS = {
    "Llama": (LLAMA, WIDENINGS | UPCYCLE),
    "Mixtral": (replace(LLAMA, num_experts=8, top_k=2), WIDENINGS | MULTIPLY),
}


def build_model(config: ModelConfig, dtype: torch.dtype) -> TransformerLM:
    """Build a random model with entries of realistic size and logits of order one."""
    model = TransformerLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            numbers = keyed_normal(tuple(parameter.shape), "half precision", name)
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.2 * numbers)
            else:
                parameter.copy_(numbers * parameter.shape[-1] ** -0.5)
    return model.to(dtype).eval()


def largest_sum_error(old: TransformerLM, new: TransformerLM, growth_map: GrowthMap) -> float:
    """Return the largest difference of a sum of copies from its source, of all matrices with copies."""
    before, after, worst = old.state_dict(), new.state_dict(), 0.0
    for name, row in axes_table(new).items():
        source = growth_map.tensors[name].source
        grown = {i: dim for i, dim in enumerate(row.label.dims) if dim.axis in growth_map.axes}
        is_split = any(row.label.dims[i].role is Role.READS for i in grown) or any(
            dim.axis == "experts" and row.label.has(Role.WRITES, "residual")
            for dim in grown.values()
        )
        kept = row.block is None or growth_map.blocks[row.block].kind == "kept"
        if not is_split or not kept or source is None:
            continue
        x = after[name].double()
        for place, dim in grown.items():
            channels = growth_map.axes[dim.axis]
            if dim.role is Role.READS or dim.axis == "experts":
                x = channels.sum_copies(x, place)
                x = x / (channels.max_copies if dim.axis == "experts" else 1)
            else:
                x = channels.select_first_copies_in_source_order(x, place)
        worst = max(worst, float((x - before[source].double()).abs().max()))
    return worst


@torch.no_grad()
def run(model: TransformerLM, tokens: Tensor) -> tuple[Tensor, list[Routing]]:
    """Return a model's logits in fp32, and what its routers chose."""
    routings: list[Routing] = []
    return model(tokens, routings).float(), routings


def count_flips(old: list[Routing], new: list[Routing], growth_map: GrowthMap) -> tuple[int, int]:
    """Return the number of choices of other experts than before, and of those the number that are near ties."""
    experts = growth_map.axes.get("experts")
    kept = [i for i, origin in enumerate(growth_map.blocks) if origin.kind == "kept"] if old else []
    flips = ties = 0
    for before, after in zip(old, [new[i] for i in kept], strict=True):
        chosen = (
            after.selected_experts if experts is None else experts.source[after.selected_experts]
        )
        repeats = chosen.shape[-1] // before.selected_experts.shape[-1]
        expected = before.selected_experts.repeat(1, repeats).sort().values
        changed = (chosen.sort().values != expected).any(dim=-1)
        flips += int(changed.sum())
        ties += int((changed & (before.selection_margin() < NEAR_TIE_MARGIN)).sum())
    return flips, ties


def compare(
    old: TransformerLM, new: TransformerLM, growth_map: GrowthMap, tokens: Tensor
) -> dict[str, Any]:
    """Return the differences of two models that are run in their own precision."""
    (before, old_routings), (after, new_routings) = run(old, tokens), run(new, tokens)
    flips, ties = count_flips(old_routings, new_routings, growth_map)
    moved = (after - before).flatten()
    return {
        "logits": float(moved.abs().max()),
        "spread": float(moved.std() / before.std()),
        "flips": flips,
        "near_ties": ties,
    }


def measure(dtype: torch.dtype) -> list[dict[str, Any]]:
    """Return one row for each model and growth."""
    rows: list[dict[str, Any]] = []
    for family, (config, growths) in MODELS.items():
        old = build_model(config, dtype)
        fp32_old = copy.deepcopy(old).float()
        tokens = torch.randint(config.vocab_size, (4, 128), generator=keyed_generator("half"))
        no_growth = build_growth_map(config, [])
        own = compare(fp32_old, old, no_growth, tokens)
        rows.append({"model": family, "growth": "none: half precision against fp32", "half": own})
        for name, operators in track(growths.items(), f"{family}, {dtype}", transient=True):
            growth_map = build_growth_map(config, operators)
            new = grow(old, operators)
            row = {"model": family, "growth": name, "sum": largest_sum_error(old, new, growth_map)}
            row["expected"] = growth_map.expected_logit_change(dtype)
            row["half"] = compare(old, new, growth_map, tokens)
            row["fp32"] = compare(fp32_old, new.float(), growth_map, tokens)
            rows.append(row)
    return rows


COLUMNS = {
    "sums off by": lambda row: f"{row['sum']:.1e}" if "sum" in row else "",
    "logits, fp32": lambda row: f"{row['fp32']['logits']:.1e}" if "fp32" in row else "",
    "share": lambda row: f"{row['fp32']['spread']:.2%}" if "fp32" in row else "",
    "expected": lambda row: f"{row['expected']:.2%}" if row.get("expected") else "",
    "flips, fp32": lambda row: _format_flips(row.get("fp32"), row["model"]),
    "logits, half": lambda row: f"{row['half']['logits']:.1e}",
    "flips, half": lambda row: _format_flips(row["half"], row["model"]),
}


def _format_flips(found: dict[str, Any] | None, model: str) -> str:
    if found is None or model == "Llama":
        return ""
    return f"{found['flips']} ({found['near_ties']} near ties)" if found["flips"] else "0"


def print_table(dtype: str, rows: list[dict[str, Any]], before: list[dict[str, Any]]) -> None:
    """Print the rows as a table in Markdown, with earlier figures before the present ones."""
    print(f"\n{dtype}\n\n| model | growth | " + " | ".join(COLUMNS) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for index, row in enumerate(rows):
        cells = []
        for show in COLUMNS.values():
            now, earlier = show(row), show(before[index]) if before else ""
            cells.append(now if earlier in (now, "") else f"{earlier} → {now or '0'}")
        print(f"| {row['model']} | {row['growth']} | " + " | ".join(cells) + " |")


def main() -> int:
    """Parse the arguments, measure, and print a table for each precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float16"])
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--before", type=Path, help="such a file of an earlier version, to show")
    arguments = parser.parse_args()
    before = json.loads(arguments.before.read_text()) if arguments.before else {}
    found = {}
    for dtype in arguments.dtypes:
        found[dtype] = measure(getattr(torch, dtype))
        print_table(dtype, found[dtype], before.get(dtype, []))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_main_and_exit(main)
