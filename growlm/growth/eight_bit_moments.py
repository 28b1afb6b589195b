"""Quantize optimizer moments to 8 bits: a code for every entry and a scale for every block of entries.

The method is Dettmers et al. 2021 (arXiv 2110.02861) in torchao's format and arithmetic, bit for bit, so that
moments can grow, in memory and on disk, where torchao is not installed. In an optimizer's state, codes are
stored under the moment's own name and scales under `scale_key(name)`. Codes and scales are what is stored,
never the plain moment: a block whose largest entry is negative comes back 0.7 % smaller each time it is
quantized, since no code stands for −1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

BLOCK_SIZES = (256, 128, 64)
"""Numbers of neighboring entries of the flattened tensor that share a scale; the first that divides its size
is used. torchao has 256 alone; smaller ones are for vocabularies of odd size, such as GPT-2's."""
MIN_QUANTIZED_ENTRIES = 4096
"""The number of entries of the smallest tensor whose moments are stored in 8 bits."""
MIN_SCALE = 1e-12
"""The scale of a block of zeros."""
CHUNK_ENTRIES = 2**18
"""The number of entries converted at a time, which bounds the memory for intermediate results."""


def is_quantizable(shape: Sequence[int]) -> bool:
    """Return whether a tensor's moments are stored in 8 bits: it is large enough and consists of whole blocks."""
    entries = math.prod(shape)
    return entries >= MIN_QUANTIZED_ENTRIES and entries % BLOCK_SIZES[-1] == 0


def count_scales(shape: Sequence[int]) -> int:
    """Return the number of scales of a quantizable tensor: one per block."""
    entries = math.prod(shape)
    return entries // next(block for block in BLOCK_SIZES if entries % block == 0)


def scale_key(entry: str) -> str:
    """Return the name of a moment's scales."""
    return f"{entry}_scale"


@lru_cache
def create_dynamic_map(signed: bool, device: torch.device | None = None) -> Tensor:
    """Return the value of each of the 256 codes, ascending: dynamic tree quantization.

    There are seven decades below 1, each divided evenly and twice as finely as the one below it; zero; and
    one.

    Args:
        signed: Whether there are negative values, at the price of half the steps.
        device: Device of the result.
    """
    values = [torch.tensor([0.0, 1.0])]
    for decade in range(7):
        steps = 2**decade if signed else 2 ** (decade + 1)
        edges = torch.linspace(0.1, 1.0, steps + 1)
        middles = 10 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += [middles, -middles] if signed else [middles]
    return torch.cat(values).sort().values.to(device)


def quantize(moment: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Quantize a moment to 8 bits.

    Args:
        moment: Moment, fp32, of whole blocks.
        signed: Whether it may have negative entries.

    Returns:
        Codes of the moment's shape (uint8), and scales, one per block (fp32).
    """
    codes = torch.empty(moment.shape, dtype=torch.uint8, device=moment.device)
    scale = torch.empty(count_scales(moment.shape), device=moment.device)
    quantize_into(codes, scale, moment, signed)
    return codes, scale


def quantize_into(codes: Tensor, scale: Tensor, moment: Tensor, signed: bool) -> None:
    """Quantize a moment as `quantize` does, into existing tensors."""
    values = create_dynamic_map(signed, moment.device)
    flat = scale.view(-1, 1)
    blocks, held = codes.view(len(flat), -1), moment.reshape(len(flat), -1)
    for part in _chunks(blocks):
        largest = held[part].abs().amax(-1, keepdim=True).clip(MIN_SCALE)
        ratio = held[part] / largest
        below = torch.bucketize(ratio, values, right=True, out_int32=True).sub_(1).clamp_(min=0)
        above = (below + 1).clamp_(max=255)
        # The same subtraction and comparison as torchao's: comparing with a midpoint may round differently.
        goes_up = ratio - values[below] >= (values[above] - values[below]) * 0.5
        blocks[part] = torch.where(goes_up, above, below)
        flat[part] = largest


def dequantize(codes: Tensor, scale: Tensor, signed: bool) -> Tensor:
    """Return the moment that codes and scales stand for, fp32, in the codes' shape."""
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
