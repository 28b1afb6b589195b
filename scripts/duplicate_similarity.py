"""Measure the cosine similarity of the duplicate channels that widening makes, before and after 100 steps.

    python scripts/duplicate_similarity.py                    (about 4 minutes on two cores)
    python scripts/duplicate_similarity.py outputs/duplicates.json

The quickstart's dense model trains for 100 steps, is widened twofold, and trains for 100 steps more. There is one
run for each way of breaking the symmetry between copies.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from growlm.checkpoint import load_model
from growlm.config import load_config
from growlm.growth import Widen
from growlm.growth.channel_map import ChannelMap
from growlm.model import TransformerLM
from growlm.model.axes import Role, axes_table
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.training import run_plan
from growlm.verification import infer_growth_from_configs

STEPS = 100
ARMS: dict[str, tuple[Widen, str]] = {
    "no noise": (Widen(noise_std=0), "carry"),
    "noise 1e-5": (Widen(noise_std=1e-5), "carry"),
    "noise 1e-2 (default)": (Widen(new_channels="copies"), "carry"),
    "noise at 10 dB": (Widen(noise_snr_db=10), "carry"),
    "no noise, split 1:2": (Widen(noise_std=0, split="1:2"), "carry"),
    "no noise, asymmetric": (Widen(noise_std=0), "asymmetric"),
    "no noise, exact": (Widen(noise_std=0), "exact"),
}


def run_arm(widen: Widen, mode: str, folder: Path) -> dict[str, float]:
    """Train, widen and train; return the similarity of duplicates by axis and step, and the validation loss."""
    plan = ("phase_plan=dense", "logger=none", "callbacks.sample_tokens=0", f"run_dir='{folder}'")
    config = load_config(*plan)
    dense = replace(config.phases["dense"], steps=STEPS)
    wide = replace(
        dense,
        optimizer_state=mode,
        grow=[{"widen": replace(widen, scale_factor=2)}],
        save_initial_as="initial",
        save_as="final",
    )
    config = replace(config, phases={"dense": dense, "wide": wide})
    result = run_plan(config)
    models = {
        n: load_model(folder / "checkpoints" / n)[0] for n in ("dense_model", "initial", "final")
    }
    axes = infer_growth_from_configs(models["dense_model"].config, models["final"].config).axes
    figures = {"val_loss": result.summary.phases[-1].val_loss}
    for axis in ("hidden", "query_heads"):
        for name in ("initial", "final"):
            figures[f"{axis} {name}"] = similarity(models[name], axis, axes)
    return figures


def similarity(model: TransformerLM, axis: str, axes: Mapping[str, ChannelMap]) -> float:
    """Return the mean cosine similarity of duplicate rows over the matrices that write the axis.

    Columns are summed over the copies that they read, so that noise that cancels does not count.
    """
    cosines = []
    duplicates, residual = axes[axis].duplicate_pairs, axes["residual"]
    table = axes_table(model)
    for name, weight in model.named_parameters():
        label = table[name].label
        if label.has(Role.READS, "residual") and label.has(Role.WRITES, axis):
            folded = residual.sum_copies(weight.detach(), dim=1)
            pairs = folded[duplicates[:, 0]], folded[duplicates[:, 1]]
            cosines.append(torch.cosine_similarity(*pairs, dim=1).mean())
    return float(torch.stack(cosines).mean())


def main() -> None:
    """Print the table; write it as JSON if a path is given."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (widen, mode)) in enumerate(ARMS.items()):
            rows[name] = run_arm(widen, mode, Path(folder) / str(number))
    table = Table(
        "symmetry broken by", *(f"{axis}\n0 → {STEPS} steps" for axis in ("hidden units", "heads"))
    )
    table.add_column("validation loss")
    for name, row in rows.items():
        changes = [
            f"{row[f'{axis} initial']:.4f} → {row[f'{axis} final']:.4f}"
            for axis in ("hidden", "query_heads")
        ]
        table.add_row(name, *changes, f"{row['val_loss']:.4f}")
    Console().print(table)
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    run_main_and_exit(main)
