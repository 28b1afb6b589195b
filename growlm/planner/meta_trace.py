"""What one forward and backward pass takes and does, found on fake tensors, which have shapes and no memory.

With one and with two layers, since every further layer adds the same.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from functools import lru_cache
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from growlm.model import loss
from growlm.model.config import ModelConfig
from growlm.model.layers import experts
from growlm.model.transformer import TransformerLM


@dataclass(frozen=True)
class PassWorkload:
    """Of one forward and backward pass."""

    activations: int
    """Bytes kept for the backward pass when the forward pass ends."""
    forward_peak: int
    """The most bytes held at once in the forward pass."""
    peak: int
    """The most bytes held at once, gradients included."""
    half_flops: int
    """In products of half precision."""
    single_flops: int
    """In all other products, and in fused attention, which is no faster."""
    other_bytes: int
    """Read and written by everything that is no product."""
    num_calls: int
    """Operations of any kind."""
    weight_copies: int = 0
    """Of the activations: weights cast to half precision."""


def trace_pass(
    config: ModelConfig,
    batch_size: int,
    sequence_length: int,
    bf16: bool,
    activation_checkpointing: bool = False,
    fp64: bool = False,
) -> PassWorkload:
    """Find the work of a pass.

    Args:
        config: The model.
        batch: Sequences.
        time: Tokens of each.
        bf16: Whether products are in half precision.
        checkpointing: Whether blocks are computed again in the backward pass.
        double: Whether everything is in fp64.
    """
    one, two = (
        _trace_pass_cached(
            astuple(replace(config, n_layers=layers)),
            batch_size,
            sequence_length,
            bf16,
            activation_checkpointing,
            fp64,
        )
        for layers in (1, 2)
    )
    further = config.n_layers - 1
    figures = {f.name: (getattr(one, f.name), getattr(two, f.name)) for f in fields(PassWorkload)}
    return PassWorkload(**{name: a + further * (b - a) for name, (a, b) in figures.items()})


@lru_cache(maxsize=256)
def _trace_pass_cached(
    shape: tuple[object, ...],
    batch: int,
    time: int,
    bf16: bool,
    checkpointing: bool,
    double: bool = False,
) -> PassWorkload:
    dtype = torch.float64 if double else torch.float32
    with FakeTensorMode():
        with torch.device("meta"):
            model = TransformerLM(ModelConfig(*shape))  # type: ignore[arg-type]
        state = {name: torch.empty(t.shape, dtype=dtype) for name, t in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
        model.recompute_blocks = checkpointing
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        account = _WorkloadCounter({p.untyped_storage() for p in model.parameters()})
        tokens = torch.zeros(batch, time + 1, dtype=torch.long)
        with (
            account,
            # torch's own fake version knows half precision only, and the rows of each expert are not known.
            mock.patch.object(F, "grouped_mm", lambda rows, weights, *, offs: rows @ weights[0]),
            mock.patch.object(experts, "count_padded_rows", lambda slots, ends: len(slots)),
            mock.patch.object(experts.Experts, "_can_use_grouped_mm", return_value=True),
            mock.patch.object(
                loss, "BLOCK_BYTES", 8 * loss.BLOCK_BYTES
            ),  # hundreds would take seconds
        ):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                mean = model.loss(tokens, [])
            activations, forward_peak = account.held, account.peak
            weight_copies = account.copies
            mean.backward()
    return PassWorkload(
        activations=activations,
        forward_peak=forward_peak,
        peak=account.peak,
        half_flops=account.half_flops,
        single_flops=account.single_flops,
        other_bytes=account.other_bytes,
        num_calls=account.calls,
        weight_copies=weight_copies,
    )


class _WorkloadCounter(TorchDispatchMode):
    """Adds up what every operation does, and what is held of what they made.

    Args:
        weights: The storages of the parameters.
    """

    def __init__(self, weights: set[torch.UntypedStorage]) -> None:
        super().__init__()
        self._weights, self.copies = weights, 0
        self.half_flops = self.single_flops = self.other_bytes = self.calls = 0
        self.held = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.is_view:
            return out
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        for storage in (x.untyped_storage() for x in inputs):
            self._known.setdefault(storage, None)  # weights and tokens: there before
        is_copy = func.overloadpacket is torch.ops.aten._to_copy and any(
            x.untyped_storage() in self._weights for x in inputs
        )
        for storage in (x.untyped_storage() for x in outputs):
            self._hold(storage, is_copy)
        self.calls += 1
        flops = self._flops(func, args, kwargs, out)
        if not flops:
            self.other_bytes += sum(x.nbytes for x in (*inputs, *outputs))
        elif inputs[0].dtype in (torch.bfloat16, torch.float16) and "attention" not in str(func):
            self.half_flops += flops
        else:
            self.single_flops += flops
        return out

    def _hold(self, storage: torch.UntypedStorage, is_copy: bool) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = None
        self.held += size
        self.copies += size * is_copy
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._drop, size, is_copy)

    def _drop(self, size: int, is_copy: bool) -> None:
        self.held -= size
        self.copies -= size * is_copy

    @staticmethod
    def _flops(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
        packet = func.overloadpacket
        if packet in flop_registry:
            return flop_registry[packet](*args, **kwargs, out_val=out)
        name = packet.__name__
        if not name.startswith("_scaled_dot_product_flash_attention_for_cpu"):
            return 0
        backward = name.endswith("backward")
        query, key = args[1:3] if backward else args[:2]
        # Two products forward; backward the scores again and four more.
        products = 5 if backward else 2
        return products * 2 * query.numel() * key.shape[2]
