"""Moments in 8 bits: a code for every entry and a scale for every block of them.

Dettmers et al. 2021 (arXiv 2110.02861) in torchao's form and arithmetic, to the bit, so that moments can grow, in
memory and on disk, where torchao is not installed. In an optimizer's state, codes are under the moment's own name
and scales under `scale_of(name)`. These are what is kept, never the plain moment: a block whose largest entry is
negative comes back 0.7 % smaller each time it is rounded anew, since no code stands for −1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

BLOCK_SIZES = (256, 128, 64)
"""Entries that share a scale, neighbours in the flattened tensor: the first of these that divides it. torchao has
256 alone; smaller ones are for vocabularies of odd size, GPT-2's among them."""
MIN_QUANTIZED_ENTRIES = 4096
"""Entries of the smallest tensor whose moments are held in 8 bits."""
MIN_SCALE = 1e-12
"""Of a block of zeros."""
CHUNK_ENTRIES = 2**18
"""Entries that are turned at a time: what is needed on the way stays small."""


def is_quantizable(shape: Sequence[int]) -> bool:
    """Whether a tensor's moments are held in 8 bits: it is large enough, and whole blocks."""
    entries = math.prod(shape)
    return entries >= MIN_QUANTIZED_ENTRIES and entries % BLOCK_SIZES[-1] == 0


def count_scales(shape: Sequence[int]) -> int:
    """How many scales a tensor has that fits: one per block."""
    entries = math.prod(shape)
    return entries // next(block for block in BLOCK_SIZES if entries % block == 0)


def scale_key(entry: str) -> str:
    """The name of a moment's scales."""
    return f"{entry}_scale"


@lru_cache
def create_dynamic_map(signed: bool, device: torch.device | None = None) -> Tensor:
    """What each of the 256 codes stands for, ascending: dynamic tree quantization.

    Seven decades below 1, each divided evenly and twice as finely as the one below it; zero; and one.

    Args:
        signed: Whether it has negative values, at the price of half the steps.
        device: Where to put it.
    """
    values = [torch.tensor([0.0, 1.0])]
    for decade in range(7):
        steps = 2**decade if signed else 2 ** (decade + 1)
        edges = torch.linspace(0.1, 1.0, steps + 1)
        middles = 10 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += [middles, -middles] if signed else [middles]
    return torch.cat(values).sort().values.to(device)


def quantize(moment: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """A moment in 8 bits.

    Args:
        moment: Whole blocks, fp32.
        signed: Whether it may have negative entries.

    Returns:
        Codes of the moment's shape (uint8), and scales, one per block (fp32).
    """
    codes = torch.empty(moment.shape, dtype=torch.uint8, device=moment.device)
    scale = torch.empty(count_scales(moment.shape), device=moment.device)
    quantize_into(codes, scale, moment, signed)
    return codes, scale


def quantize_into(codes: Tensor, scale: Tensor, moment: Tensor, signed: bool) -> None:
    """As `quantise`, into tensors that exist."""
    values = create_dynamic_map(signed, moment.device)
    flat = scale.view(-1, 1)
    blocks, held = codes.view(len(flat), -1), moment.reshape(len(flat), -1)
    for part in _chunks(blocks):
        largest = held[part].abs().amax(-1, keepdim=True).clip(MIN_SCALE)
        ratio = held[part] / largest
        below = torch.bucketize(ratio, values, right=True, out_int32=True).sub_(1).clamp_(min=0)
        above = (below + 1).clamp_(max=255)
        # The same subtraction and comparison as torchao's: a midpoint computed first may round to another side.
        goes_up = ratio - values[below] >= (values[above] - values[below]) * 0.5
        blocks[part] = torch.where(goes_up, above, below)
        flat[part] = largest


def dequantize(codes: Tensor, scale: Tensor, signed: bool) -> Tensor:
    """The moment that codes and scales stand for, fp32, in the codes' shape."""
    values = create_dynamic_map(signed, codes.device)
    moment = torch.empty(codes.shape, device=codes.device)
    flat = scale.view(-1, 1)
    blocks, made = codes.view(len(flat), -1), moment.view(len(flat), -1)
    for part in _chunks(blocks):
        torch.mul(values[blocks[part].int()], flat[part], out=made[part])
    return moment


def _chunks(blocks: Tensor) -> Iterator[slice]:
    count, size = blocks.shape
    step = CHUNK_ENTRIES // size
    return (slice(start, start + step) for start in range(0, count, step))
