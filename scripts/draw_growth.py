"""The pictures of docs/operators: what each operator does to a matrix, or to the blocks, read off its own map.

    pip install 'growlm[docs]' && python scripts/draw_growth.py        (some seconds; writes docs/images/*.png)

An entry's colour is the old entry it copies; its label is what it was multiplied with.
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
COLOURS = matplotlib.colormaps["viridis"].with_extremes(bad="white")
DENSE = ModelConfig(
    vocab_size=8, d_model=4, n_layers=4, n_heads=2, n_kv_heads=2, head_dim=2, d_ff=6
)
DOUBLE = {"d_model": 8, "n_heads": 4, "d_ff": 12, "noise_std": 0}
UP = "blocks.0.feed_forward.up.weight"
EXPERTS = "blocks.0.feed_forward.experts.up"


def colours_and_factors(
    config: ModelConfig, operators: Sequence[Operator], name: str
) -> tuple[Tensor, Tensor]:
    """For every entry of a grown tensor: which old entry it copies (NaN for none), and its factor."""
    growth_map = build_growth_map(config, operators)
    tensor_map = growth_map.tensors[name]
    shape = growth_map.old_shapes[tensor_map.source or name]
    x = torch.arange(float(np.prod(shape))).view(shape)
    for piece in tensor_map.transforms:
        if isinstance(piece, Copy | Split):
            x = x.unsqueeze(0) if isinstance(piece, Copy) and piece.inserts_dim else x
            x = piece.channels.select(x, piece.dim)
        elif isinstance(piece, SplitIntoExperts):
            parts = (piece.channels.old_size, -1)
            x = piece.channels.select(x.unflatten(piece.dim, parts).movedim(piece.dim, 0), 0)
        elif isinstance(piece, Fill):
            x = x.index_fill(piece.dim, piece.channels.is_filler.nonzero().squeeze(1), torch.nan)
        elif isinstance(piece, NewTensor):
            x = torch.full(piece.shape, torch.nan)
    factors = growth_map.scale_factors()[name]
    factor = torch.ones(())
    for f in factors:
        factor = factor.unsqueeze(-1) * f.weight.float()
    return x, factor


def draw_matrix(axes: Axes, colour: Tensor, factor: Tensor | None, title: str, top: float) -> None:
    """One matrix, rows down; entries without a source are hatched."""
    rows, columns = colour.shape
    masked = np.ma.masked_invalid(colour.numpy())
    axes.imshow(masked, cmap=COLOURS, vmin=0, vmax=top)
    for row in range(rows):
        for column in range(columns):
            if torch.isnan(colour[row, column]):
                box = (column - 0.5, row - 0.5)
                axes.add_patch(
                    Rectangle(box, 1, 1, fill=False, hatch="////", edgecolor="0.6", lw=0)
                )
            elif factor is not None and float(factor[row, column]) != 1.0:
                dark = float(colour[row, column]) < 0.6 * top
                axes.text(column, row, f"{float(factor[row, column]):.2g}", ha="center", va="center",
                          fontsize=6, color="white" if dark else "black")  # fmt: skip
    axes.set_xticks(np.arange(-0.5, columns), minor=True)
    axes.set_yticks(np.arange(-0.5, rows), minor=True)
    axes.grid(which="minor", color="white", lw=0.5)
    axes.tick_params(which="both", bottom=False, left=False, labelbottom=False, labelleft=False)
    axes.set_title(title, fontsize=9)


def draw_widen() -> None:
    """A matrix that writes hidden units and reads the residual stream."""
    cases = [
        ("×2", [Widen(**DOUBLE)]),
        ("×1.5: two filler channels, hatched", [Widen(d_model=6, n_heads=3, d_ff=9, noise_std=0)]),
        ("×2, split 1:2", [Widen(**DOUBLE, split="1:2")]),
    ]
    figure, axes = plt.subplots(1, 4, figsize=(11, 4.2), width_ratios=(4, 8, 6, 8))
    old = torch.arange(24.0).view(6, 4)
    draw_matrix(axes[0], old, None, "W: 6 hidden units (rows)\nread 4 channels (columns)", 23)
    for place, (title, operators) in zip(axes[1:], cases, strict=True):
        colour, factor = colours_and_factors(DENSE, operators, UP)
        draw_matrix(place, colour, factor, title, 23)
    save(figure, "widen")


def draw_experts() -> None:
    """One up projection becoming experts, and experts becoming more."""
    config = DENSE
    upcycled, _ = colours_and_factors(config, [Upcycle(num_experts=4)], EXPERTS)
    finer, _ = colours_and_factors(config, [Upcycle(num_experts=4, granularity=2)], EXPERTS)
    figure, axes = plt.subplots(2, 9, figsize=(11, 3.6))
    old = torch.arange(24.0).view(6, 4)
    for line, (stack, title) in enumerate(((upcycled, "expert"), (finer, "expert"))):
        draw_matrix(axes[line][0], old, None, "dense", 23)
        for number in range(8):
            if number < len(stack):
                place = axes[line][number + 1]
                draw_matrix(place, stack[number], None, f"{title} {number}", 23)
            else:
                axes[line][number + 1].axis("off")
    save(figure, "upcycle")


def draw_multiplied() -> None:
    """Experts and their router's rows, twice."""
    mixture = build_growth_map(DENSE, [Upcycle(num_experts=3)]).new_config
    figure, axes = plt.subplots(1, 9, figsize=(11, 2.4))
    stack, _ = colours_and_factors(mixture, [MultiplyExperts(2)], EXPERTS)
    top = float(stack.max())
    for number in range(3):
        draw_matrix(axes[number], stack[number], None, f"before:\nexpert {number}", top)
    for number in range(6):
        title = f"after: expert {number}\n(copies {number % 3})"
        draw_matrix(axes[3 + number], stack[number], None, title, top)
    save(figure, "multiply_experts")


def draw_deepen() -> None:
    """Blocks from bottom to top; hatched ones begin with zero output projections."""
    figure, axes = plt.subplots(1, 4, figsize=(8, 4))
    draw_blocks(axes[0], list(range(4)), ["kept"] * 4, "4 blocks")
    for place, placement in zip(axes[1:], ("append", "stack", "interleave"), strict=True):
        blocks = build_growth_map(DENSE, [Deepen(extra_layers=3, placement=placement)]).blocks
        kinds = [block.kind for block in blocks]
        draw_blocks(place, [block.source for block in blocks], kinds, placement)
    save(figure, "deepen")


def draw_blocks(axes: Axes, sources: list[int], kinds: list[str], title: str) -> None:
    """One column of blocks."""
    for level, (source, kind) in enumerate(zip(sources, kinds, strict=True)):
        colour = COLOURS(0.15 + 0.25 * source)
        hatch = None if kind == "kept" else "////"
        axes.add_patch(
            Rectangle((0, level), 1, 0.85, facecolor=colour, hatch=hatch, edgecolor="white")
        )
        words = f"block {source}" if kind == "kept" else f"new, from {source}"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 2}
        axes.text(0.5, level + 0.42, words, ha="center", va="center", fontsize=8, bbox=box)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 7)
    axes.axis("off")
    axes.set_title(title, fontsize=9)


def save(figure: plt.Figure, name: str) -> None:
    """Write a picture."""
    figure.tight_layout()
    figure.savefig(FOLDER / f"{name}.png", dpi=110)
    plt.close(figure)
    print(f"docs/images/{name}.png")


def main() -> None:
    """Draw all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    draw_widen()
    draw_experts()
    draw_multiplied()
    draw_deepen()


if __name__ == "__main__":
    main()
