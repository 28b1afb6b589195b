"""Count how the tokens of the probe moved between experts over a growth, from the traces of its checks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from growlm.model.layers.routing import Routing
from growlm.verification.comparison import ModelComparison

MAX_MOVES = 4000
"""Largest number of pairs of experts that are kept for a growth, over all layers: the most frequent ones."""


def count_expert_movement(comparison: ModelComparison) -> dict[str, Any]:
    """Return how many choices of the probe's tokens went from each old expert to each new one.

    A token chooses several experts. A new choice continues the old choice whose expert it copies, or, if the token
    did not use that expert, one of the old choices that nothing else continues.

    Returns:
        `experts`, the numbers of old and of new experts (1 for a dense layer); and `layers`, for each mixture of
        the grown model: `layer`; `old_layer`, None for an inserted one; `choices`, how many there are; `stayed`,
        how many of them use a copy of an expert that the token used before, None where there were no experts; and
        `moves`, the counts as [old expert, new expert, choices]. Empty if the grown model reports no routers.
    """
    routings = comparison.new_trace.routings
    if not routings:
        return {}
    old_routings = {block: old for block, old, _ in comparison.matched_routers()}
    limit = max(1, MAX_MOVES // len(routings))
    layers = []
    for block, new in zip(comparison.new_config.mixtures, routings, strict=True):
        origin = comparison.growth_map.blocks[block]
        old = old_routings.get(block)
        moves, stayed = _count_moves(old, new, comparison.expert_sources)
        layers.append(
            {
                "layer": block,
                "old_layer": origin.source if origin.kind == "kept" else None,
                "choices": new.selected_experts.numel(),
                "stayed": stayed,
                "moves": sorted(sorted(moves, key=lambda move: -move[2])[:limit]),
            }
        )
    num_old = next((old.num_experts for old in old_routings.values()), 1)
    return {"experts": [num_old, routings[0].num_experts], "layers": layers}


def _count_moves(
    old: Routing | None, new: Routing, sources: Tensor
) -> tuple[list[list[int]], int | None]:
    """Return the counts that are not zero, and how many choices use a copy of an expert used before."""
    chosen = new.selected_experts
    if old is None:
        counts = torch.bincount(chosen.flatten(), minlength=new.num_experts).unsqueeze(0)
        return _list_counts(counts), None
    before, copied = old.selected_experts, sources[chosen]
    continues = copied.unsqueeze(2) == before.unsqueeze(1)  # (N, new choices, old choices)
    has_stayed = continues.any(dim=2)
    is_free = ~continues.any(dim=1)
    # Old choices in the order in which new ones take them: those that nothing continues come first.
    order = (~is_free).int().argsort(dim=1, stable=True)
    num_free = is_free.sum(dim=1, keepdim=True)
    width = torch.where(num_free > 0, num_free, before.shape[1])
    rank = ((~has_stayed).int().cumsum(dim=1) - 1).clamp(min=0) % width
    left_over = before.gather(1, order.gather(1, rank))
    origin = torch.where(has_stayed, copied, left_over)
    pairs = origin * new.num_experts + chosen
    counts = torch.bincount(pairs.flatten(), minlength=old.num_experts * new.num_experts)
    return _list_counts(counts.view(old.num_experts, new.num_experts)), int(has_stayed.sum())


def _list_counts(counts: Tensor) -> list[list[int]]:
    places = counts.nonzero()
    values = counts[places[:, 0], places[:, 1]].unsqueeze(1)
    moves: list[list[int]] = torch.cat((places, values), dim=1).tolist()
    return moves
