"""Measure the work and memory of a forward and backward pass on fake tensors, which have shapes but no data.

Only models of one and two layers are traced, since every further layer of a kind adds the same.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from growlm.model.config import ModelConfig
from growlm.model.tracing import tracing
from growlm.model.transformer import TransformerLM


@dataclass(frozen=True)
class PassWorkload:
    """Work and memory of one forward and backward pass."""

    activations: int
    """Bytes kept for the backward pass when the forward pass ends."""
    forward_peak: int
    """Peak bytes in the forward pass."""
    peak: int
    """Peak bytes in the whole pass, gradients included."""
    half_flops: int
    """FLOPs of matrix products in half precision."""
    single_flops: int
    """FLOPs of all other matrix products, and of fused attention, which is no faster in half precision."""
    other_bytes: int
    """Bytes read and written by operations other than matrix products."""
    num_calls: int
    """Number of operations of any kind."""
    weight_copies: int = 0
    """Bytes of the activations that are weights cast to half precision."""


def trace_pass(
    config: ModelConfig,
    batch_size: int,
    sequence_length: int,
    bf16: bool,
    activation_checkpointing: bool = False,
    fp64: bool = False,
    document_mask: bool = False,
) -> PassWorkload:
    """Return the work and memory of a forward and backward pass.

    Args:
        config: Config of the model.
        batch_size: Number of sequences.
        sequence_length: Tokens per sequence.
        bf16: Whether matrix products are in half precision.
        activation_checkpointing: Whether blocks are recomputed in the backward pass.
        fp64: Whether everything is in fp64.
        document_mask: Whether attention stays within the documents of a sequence.
    """

    def trace(blocks: list[int]) -> PassWorkload:
        return _trace_pass_cached(
            config.with_blocks(blocks),
            batch_size,
            sequence_length,
            bf16,
            activation_checkpointing,
            fp64,
            document_mask,
        )

    one = trace([0])
    values = {f.name: getattr(one, f.name) for f in fields(PassWorkload)}
    kinds = [
        (config.block_window(i), config.rotates(i), config.is_mixture(i))
        for i in range(config.n_layers)
    ]
    for kind, count in Counter(kinds[1:]).items():
        block = kinds.index(kind)
        two = trace([0, block])
        for name in values:
            values[name] += count * (getattr(two, name) - getattr(one, name))
        if document_mask and count > 1 and kind[0] != kinds[0][0]:
            # The first of these blocks adds a mask that the others share.
            first, second = trace([block]), trace([block, block])
            for name in values:
                added, shared = (
                    getattr(larger, name) - getattr(smaller, name)
                    for larger, smaller in ((two, one), (second, first))
                )
                values[name] += (count - 1) * (shared - added)
    return PassWorkload(**values)


@lru_cache(maxsize=256)
def _trace_pass_cached(
    config: ModelConfig,
    batch_size: int,
    sequence_length: int,
    bf16: bool,
    activation_checkpointing: bool,
    fp64: bool = False,
    document_mask: bool = False,
) -> PassWorkload:
    dtype = torch.float64 if fp64 else torch.float32
    with FakeTensorMode():
        with torch.device("meta"):
            model = TransformerLM(config)
        state = {name: torch.empty(t.shape, dtype=dtype) for name, t in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
        model.recompute_blocks = activation_checkpointing
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        counter = _WorkloadCounter({p.untyped_storage() for p in model.parameters()})
        tokens = torch.zeros(batch_size, sequence_length + 1, dtype=torch.long)
        positions = torch.zeros_like(tokens) if document_mask else None
        with counter, tracing():
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                mean = model.loss(tokens, [], positions)
            activations, forward_peak = counter.held, counter.peak
            weight_copies = counter.copies
            mean.backward()
    return PassWorkload(
        activations=activations,
        forward_peak=forward_peak,
        peak=counter.peak,
        half_flops=counter.half_flops,
        single_flops=counter.single_flops,
        other_bytes=counter.other_bytes,
        num_calls=counter.calls,
        weight_copies=weight_copies,
    )


class _WorkloadCounter(TorchDispatchMode):
    """Dispatch mode that counts the work of every operation and the memory of live tensors.

    Args:
        weights: Storages of the parameters.
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
            self._known.setdefault(storage, None)  # weights and tokens, which existed before
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
        # Two products in the forward pass; in the backward pass, the scores again and four more.
        products = 5 if backward else 2
        return products * 2 * query.numel() * key.shape[2]
