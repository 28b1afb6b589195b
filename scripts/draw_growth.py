"""Draw the pictures of docs/operators, which show what each operator does to a matrix or to the blocks.

    pip install 'growlm[docs]' && python scripts/draw_growth.py        (a few seconds; writes docs/images/*.png)

The pictures are drawn from the growth maps of the operators. The color of an entry says which old entry it copies;
its label is the factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from growlm.growth import Deepen, MultiplyExperts, Operator, Upcycle, Widen, build_growth_map
from growlm.growth.transforms.tensor_transforms import Copy, Fill, NewTensor, Split
from growlm.growth.transforms.upcycle_transforms import SplitIntoExperts
from growlm.model import ModelConfig
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.runtime.optional_packages import require_package

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.patches import Rectangle
except ModuleNotFoundError:
    require_package("matplotlib", "'growlm[docs]'")
    raise

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images"
COLORS = matplotlib.colormaps["viridis"].with_extremes(bad="white")
DENSE = ModelConfig(
    vocab_size=8, d_model=4, n_layers=4, n_heads=2, n_kv_heads=2, head_dim=2, d_ff=6
)
DOUBLE = {"d_model": 8, "n_heads": 4, "d_ff": 12, "noise_std": 0}
UP = "blocks.0.feed_forward.up.weight"
EXPERTS = "blocks.0.feed_forward.experts.up"


def entry_sources_and_factors(
    config: ModelConfig, operators: Sequence[Operator], name: str
) -> tuple[Tensor, Tensor]:
    """Return, for every entry of a grown tensor, the old entry that it copies (NaN for none) and its factor."""
    growth_map = build_growth_map(config, operators)
    tensor_map = growth_map.tensors[name]
    shape = growth_map.old_shapes[tensor_map.source or name]
    x = torch.arange(float(np.prod(shape))).view(shape)
    for transform in tensor_map.transforms:
        if isinstance(transform, Copy | Split):
            x = x.unsqueeze(0) if isinstance(transform, Copy) and transform.inserts_dim else x
            x = transform.channels.select(x, transform.dim)
        elif isinstance(transform, SplitIntoExperts):
            parts = (transform.channels.old_size, -1)
            x = transform.channels.select(
                x.unflatten(transform.dim, parts).movedim(transform.dim, 0), 0
            )
        elif isinstance(transform, Fill):
            x = x.index_fill(
                transform.dim, transform.channels.is_filler.nonzero().squeeze(1), torch.nan
            )
        elif isinstance(transform, NewTensor):
            x = torch.full(transform.shape, torch.nan)
    factors = growth_map.scale_factors()[name]
    factor = torch.ones(())
    for f in factors:
        factor = factor.unsqueeze(-1) * f.weight.float()
    return x, factor


def draw_matrix(axes: Axes, color: Tensor, factor: Tensor | None, title: str, top: float) -> None:
    """Draw one matrix with rows from top to bottom; entries without a source are hatched."""
    rows, columns = color.shape
    masked = np.ma.masked_invalid(color.numpy())
    axes.imshow(masked, cmap=COLORS, vmin=0, vmax=top)
    for row in range(rows):
        for column in range(columns):
            if torch.isnan(color[row, column]):
                box = (column - 0.5, row - 0.5)
                axes.add_patch(
                    Rectangle(box, 1, 1, fill=False, hatch="////", edgecolor="0.6", lw=0)
                )
            elif factor is not None and float(factor[row, column]) != 1.0:
                dark = float(color[row, column]) < 0.6 * top
                axes.text(column, row, f"{float(factor[row, column]):.2g}", ha="center", va="center",
                          fontsize=6, color="white" if dark else "black")  # fmt: skip
    axes.set_xticks(np.arange(-0.5, columns), minor=True)
    axes.set_yticks(np.arange(-0.5, rows), minor=True)
    axes.grid(which="minor", color="white", lw=0.5)
    axes.tick_params(which="both", bottom=False, left=False, labelbottom=False, labelleft=False)
    axes.set_title(title, fontsize=9)


def draw_widen() -> None:
    """Draw a widened matrix that writes hidden units and reads the residual stream."""
    cases = [
        ("×2", [Widen(**DOUBLE)]),
        ("×1.5: two filler channels, hatched", [Widen(d_model=6, n_heads=3, d_ff=9, noise_std=0)]),
        ("×2, split 1:2", [Widen(**DOUBLE, split="1:2")]),
    ]
    figure, axes = plt.subplots(1, 4, figsize=(11, 4.2), width_ratios=(4, 8, 6, 8))
    old = torch.arange(24.0).view(6, 4)
    draw_matrix(axes[0], old, None, "W: 6 hidden units (rows)\nread 4 channels (columns)", 23)
    for panel, (title, operators) in zip(axes[1:], cases, strict=True):
        color, factor = entry_sources_and_factors(DENSE, operators, UP)
        draw_matrix(panel, color, factor, title, 23)
    save(figure, "widen")


def draw_experts() -> None:
    """Draw an up projection that becomes experts, and finer experts."""
    config = DENSE
    upcycled, _ = entry_sources_and_factors(config, [Upcycle(num_experts=4)], EXPERTS)
    finer, _ = entry_sources_and_factors(config, [Upcycle(num_experts=4, granularity=2)], EXPERTS)
    figure, axes = plt.subplots(2, 9, figsize=(11, 3.6))
    old = torch.arange(24.0).view(6, 4)
    for row, (stack, title) in enumerate(((upcycled, "expert"), (finer, "expert"))):
        draw_matrix(axes[row][0], old, None, "dense", 23)
        for number in range(8):
            if number < len(stack):
                draw_matrix(axes[row][number + 1], stack[number], None, f"{title} {number}", 23)
            else:
                axes[row][number + 1].axis("off")
    save(figure, "upcycle")


def draw_multiplied() -> None:
    """Draw experts before and after they are multiplied."""
    mixture = build_growth_map(DENSE, [Upcycle(num_experts=3)]).new_config
    figure, axes = plt.subplots(1, 9, figsize=(11, 2.4))
    stack, _ = entry_sources_and_factors(mixture, [MultiplyExperts(2)], EXPERTS)
    top = float(stack.max())
    for number in range(3):
        draw_matrix(axes[number], stack[number], None, f"before:\nexpert {number}", top)
    for number in range(6):
        title = f"after: expert {number}\n(copies {number % 3})"
        draw_matrix(axes[3 + number], stack[number], None, title, top)
    save(figure, "multiply_experts")


def draw_deepen() -> None:
    """Draw the blocks from bottom to top; hatched ones start with zero output projections."""
    figure, axes = plt.subplots(1, 4, figsize=(8, 4))
    draw_blocks(axes[0], list(range(4)), ["kept"] * 4, "4 blocks")
    for panel, placement in zip(axes[1:], ("append", "stack", "interleave"), strict=True):
        blocks = build_growth_map(
            DENSE, [Deepen(extra_layers=3, placement=placement, init="identity")]
        ).blocks
        kinds = [block.kind for block in blocks]
        draw_blocks(panel, [block.source for block in blocks], kinds, placement)
    save(figure, "deepen")


def draw_blocks(axes: Axes, sources: list[int], kinds: list[str], title: str) -> None:
    """Draw one column of blocks."""
    for level, (source, kind) in enumerate(zip(sources, kinds, strict=True)):
        color = COLORS(0.15 + 0.25 * source)
        hatch = None if kind == "kept" else "////"
        axes.add_patch(
            Rectangle((0, level), 1, 0.85, facecolor=color, hatch=hatch, edgecolor="white")
        )
        label = f"block {source}" if kind == "kept" else f"new, from {source}"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 2}
        axes.text(0.5, level + 0.42, label, ha="center", va="center", fontsize=8, bbox=box)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 7)
    axes.axis("off")
    axes.set_title(title, fontsize=9)


def save(figure: plt.Figure, name: str) -> None:
    """Write a picture to `FOLDER`."""
    figure.tight_layout()
    figure.savefig(FOLDER / f"{name}.png", dpi=110)
    plt.close(figure)
    print(f"docs/images/{name}.png")


def main() -> None:
    """Draw all pictures."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    draw_widen()
    draw_experts()
    draw_multiplied()
    draw_deepen()


if __name__ == "__main__":
    run_main_and_exit(main)
