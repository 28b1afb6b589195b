"""Mixture of experts: a router and a stack of feed-forward experts.

Tokens are sorted by expert so that every expert multiplies one contiguous slice (`grouped_mm`), then put
back. Both steps index distinct rows, forward and backward, because the backward pass of advanced indexing adds
atomically and would make runs differ.

Shapes: N tokens, E experts, K experts per token, M = N·K assignments, D residual, F hidden channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growlm.model.axes import Label, index, label, reads, writes
from growlm.model.config import ModelConfig
from growlm.model.layers.feed_forward import FeedForward, apply_activation
from growlm.model.layers.labeled_layers import labeled_linear, output_ends_update
from growlm.model.layers.routing import Routing, RoutingLog, route
from growlm.model.tracing import is_tracing

GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GROUPED_ALIGNMENT_BYTES = 16
CPU_MAX_ROW_MULTIPLE = 64
"""Largest multiple that an expert's rows are padded to; see `Experts._assign_rows`."""
CPU_LOOP_MAX_TOKENS = 32
"""Number of tokens up to which, on a CPU and without gradients, a loop over the chosen experts beats sorting (by a
tenth)."""


class _ScatterRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(slots)
        return x.new_zeros(size, x.shape[1]).index_copy_(0, slots, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _GatherRows.apply(grads[0], ctx.saved_tensors[0]), None, None


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.size = len(x)
        return x.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _ScatterRows.apply(grads[0], ctx.saved_tensors[0], ctx.size), None


def scatter_rows(x: Tensor, row_indices: Tensor, num_rows: int) -> Tensor:
    """Put row i of x at row `row_indices[i]` of a tensor of `num_rows` rows, zeros elsewhere.

    The backward pass is deterministic.
    """
    return _ScatterRows.apply(x, row_indices, num_rows)


def gather_rows(x: Tensor, row_indices: Tensor) -> Tensor:
    """Return the rows `row_indices` of x, which must be distinct.

    The backward pass is deterministic.
    """
    return _GatherRows.apply(x, row_indices)


def count_padded_rows(slots: Tensor, ends: Tensor) -> int:
    """Return the number of rows, padding included.

    Only a CPU pads, so only there is `ends` read; reading it on another device would synchronize.
    """
    return int(ends[-1]) if ends.device.type == "cpu" and not is_tracing() else len(slots)


class Experts(nn.Module):
    """E feed-forward blocks of equal shape, stacked along the first dimension of each parameter.

    Args:
        config: Config of the model.
        replaces: Name, inside a block, of the dense `FeedForward` that upcycling replaces.
    """

    def __init__(self, config: ModelConfig, replaces: str = "feed_forward") -> None:
        super().__init__()
        self.num_experts = config.num_experts
        self.kind = config.feed_forward.kind
        self._fp32_grouped_mm: Callable[..., Tensor] | None = None
        self._uncompiled: Callable[..., Tensor] | None = None
        sizes = config.axis_sizes()

        def stack(name: str, write: str, read: str) -> None:
            shape = (config.num_experts, sizes[write], sizes[read])
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
            dims = (index("experts"), writes(write), reads(read))
            ends_update = output_ends_update(config) if write == "residual" else None
            weight = Label(dims, f"{replaces}.{name}.weight", ends_update=ends_update)
            label(self, **{name: weight})
            if config.feed_forward.bias:
                self.register_parameter(f"{name}_bias", nn.Parameter(torch.empty(shape[:2])))
                bias = Label(dims[:2], f"{replaces}.{name}.bias", ends_update=ends_update)
                label(self, **{f"{name}_bias": bias})
            else:
                self.register_parameter(f"{name}_bias", None)

        hidden = config.expert_axis
        stack("up", hidden, "residual")
        if config.feed_forward.is_gated:
            stack("gate", hidden, "residual")
        else:
            self.register_parameter("gate", None)
            self.register_parameter("gate_bias", None)
        stack("down", "residual", hidden)

    up: nn.Parameter
    gate: nn.Parameter | None
    down: nn.Parameter
    up_bias: nn.Parameter | None
    gate_bias: nn.Parameter | None
    down_bias: nn.Parameter | None

    def prepare_for_compile(self) -> None:
        """Exclude from `torch.compile` what it cannot compile once for all steps.

        On a CPU, and where `forward_loop` computes the experts, the sizes of the products depend on the routing:
        the compiler would make new code for every step, up to its limit. On a GPU it rejects only grouped
        products in fp32 (torch 2.13), although eager works.
        """
        self._fp32_grouped_mm = _exclude_from_compiler(F.grouped_mm)
        half = torch.empty(0, dtype=torch.bfloat16)
        if self.up.device.type == "cpu" or not (
            self._can_use_grouped_mm(self.up) and self._can_use_grouped_mm(half)
        ):
            self._uncompiled = _exclude_from_compiler(Experts._run)

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """Send x (N, D) through the chosen experts; return the gate-weighted sum of outputs, (N, D)."""
        if self._uncompiled is not None:
            return self._uncompiled(self, x, routing)
        return self._run(x, routing)

    def _run(self, x: Tensor, routing: Routing) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if not self._can_use_grouped_mm(x) or _is_small_cpu_batch(x):
            return self.forward_loop(x, routing)
        num_tokens, top_k = routing.selected_experts.shape
        slots, ends = self._assign_rows(routing.selected_experts.flatten(), x.dtype)
        size = count_padded_rows(slots, ends)
        repeated = x.unsqueeze(1).expand(-1, top_k, -1).reshape(num_tokens * top_k, -1)
        rows = scatter_rows(repeated, slots, size)  # sorted by expert
        one_hot = self._row_owner_one_hot(ends, size, x.dtype)
        up = self._grouped_linear(rows, self.up, self.up_bias, ends, one_hot)
        gate = (
            None
            if self.gate is None
            else self._grouped_linear(rows, self.gate, self.gate_bias, ends, one_hot)
        )
        out = self._grouped_linear(
            apply_activation(self.kind, up, gate), self.down, self.down_bias, ends, one_hot
        )
        out = gather_rows(out, slots).unflatten(0, (num_tokens, top_k))  # (N, K, D)
        return (out * routing.gates.to(out.dtype).unsqueeze(-1)).sum(dim=1)

    def _assign_rows(self, expert_indices: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the row of each assignment, (M,), and the end of each expert's rows, (E,).

        In half precision on a CPU every expert's rows are padded, to a multiple of up to
        `CPU_MAX_ROW_MULTIPLE`. The CPU library builds and keeps a kernel for every number of rows that it meets,
        and without padding most steps would bring new numbers.
        """
        counts = F.one_hot(expert_indices, self.num_experts).sum(dim=0)
        use_padding = expert_indices.device.type == "cpu" and dtype.itemsize < 4
        multiple = 1
        while use_padding and multiple < min(
            CPU_MAX_ROW_MULTIPLE, len(expert_indices) // (4 * self.num_experts)
        ):
            multiple *= 2
        padded_counts = (counts + (multiple - 1)) // multiple * multiple
        ends = padded_counts.cumsum(0)
        padding_before = (ends - padded_counts) - (counts.cumsum(0) - counts)
        rank_in_sorted = expert_indices.argsort(stable=True).argsort()
        return rank_in_sorted + padding_before[expert_indices], ends.to(torch.int32)

    def _row_owner_one_hot(self, ends: Tensor, size: int, dtype: torch.dtype) -> Tensor | None:
        """Return each row's expert as a one-hot matrix, (rows, E); None without biases."""
        if self.up_bias is None:
            return None
        rows = torch.arange(size, device=ends.device)
        owner = torch.searchsorted(ends, rows.to(ends.dtype), right=True)
        return F.one_hot(owner, self.num_experts).to(dtype)

    def forward_loop(self, x: Tensor, routing: Routing) -> Tensor:
        """Compute the same as `forward`, expert by expert.

        This is the reference, and the path for few tokens, fp64 and unaligned widths.
        """
        expert_indices = routing.selected_experts.flatten()
        order = expert_indices.argsort(stable=True)  # by expert
        rows = order // routing.selected_experts.shape[1]
        counts = expert_indices.bincount(minlength=self.num_experts).tolist()
        parts = x.index_select(0, rows).split(counts)
        results = [self._run_expert(expert, part) for expert, part in enumerate(parts) if len(part)]
        gates = routing.gates.flatten().index_select(0, order).to(x.dtype)
        weighted = torch.cat(results) * gates.unsqueeze(-1)
        return torch.zeros_like(x).index_add(0, rows, weighted)

    def _run_expert(self, expert: int, x: Tensor) -> Tensor:
        """Return the output of one expert for x (N, D)."""

        def project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            cast = None if bias is None else bias[expert].to(x.dtype)
            return F.linear(x, weight[expert].to(x.dtype), cast)

        up = project(x, self.up, self.up_bias)
        gate = None if self.gate is None else project(x, self.gate, self.gate_bias)
        return project(apply_activation(self.kind, up, gate), self.down, self.down_bias)

    def _grouped_linear(
        self,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ends: Tensor,
        one_hot: Tensor | None,
    ) -> Tensor:
        out = self._grouped_mm(rows, weight.to(rows.dtype).transpose(-2, -1), ends)
        if bias is None or one_hot is None:
            return out
        # A product with the one-hot matrix selects each row's bias, and its backward pass is a product, too.
        return torch.addmm(out, one_hot, bias.to(rows.dtype))

    def _grouped_mm(self, rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
        if is_tracing():
            return rows @ weights[0]
        fp32_product = None if rows.dtype is torch.bfloat16 else self._fp32_grouped_mm
        return (fp32_product or F.grouped_mm)(rows, weights, offs=ends)

    def _can_use_grouped_mm(self, x: Tensor) -> bool:
        if is_tracing():
            return True
        aligned = all(
            width * x.element_size() % GROUPED_ALIGNMENT_BYTES == 0 for width in self.up.shape[1:]
        )
        return x.dtype in GROUPED_DTYPES and aligned


@cache
def _exclude_from_compiler(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the function as `torch.compile` leaves it alone.

    Not at import time: it loads the compiler, which would add a second to every command. The same object for every
    layer, because layers with objects of their own would each be compiled.
    """
    excluded: Callable[..., Tensor] = torch.compiler.disable(function)
    return excluded


def _is_small_cpu_batch(x: Tensor) -> bool:
    return x.device.type == "cpu" and len(x) <= CPU_LOOP_MAX_TOKENS and not torch.is_grad_enabled()


class MixtureOfExperts(nn.Module):
    """The sparse counterpart of `FeedForward`: a router, the experts it chooses from, and perhaps a shared one.

    Args:
        config: Config of the model.
        replaces: Name, inside a block, of the `FeedForward` that it is in the dense model.
    """

    def __init__(self, config: ModelConfig, replaces: str = "feed_forward") -> None:
        super().__init__()
        self.top_k = config.top_k
        self.break_ties = config.routing.tie_breaking
        self.router = labeled_linear(config, read="residual", write="experts", bias=False)
        label(self.router, weight=Label((index("experts"), reads("residual"))))
        bias = torch.zeros(config.num_experts) if config.routing.bias_step else None
        self.register_buffer("selection_bias", bias)
        if bias is not None:
            label(self, selection_bias=Label((index("experts"),)))
        self.renormalize = config.routing.renormalize
        self.experts = Experts(config, replaces)
        self.shared = FeedForward(config, "shared_hidden") if config.shared_d_ff else None
        self.shared_gate: nn.Linear | None = None
        if self.shared is not None and config.routing.shared_gate:
            self.shared_gate = nn.Linear(config.d_model, 1, bias=False)
            label(self.shared_gate, weight=Label((index("shared_gate"), reads("residual"))))

    selection_bias: Tensor | None

    def forward(
        self, x: Tensor, routings: RoutingLog | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Return the update of the residual stream.

        Args:
            x: Normalized residual stream, (B, T, D).
            routings: Log that this layer's routing is appended to, if given.
            positions: Position of each token in its packed document, (B, T), if there are several in a row.

        Returns:
            The update, (B, T, D).
        """
        tokens = x.flatten(0, 1)
        with torch.autocast(
            x.device.type, enabled=False
        ):  # a bf16 router would choose other experts
            logits = self.router(tokens.to(self.router.weight.dtype))
        bias, length = self.selection_bias, x.shape[-2]
        routing = route(
            logits, self.top_k, self.break_ties, bias, length, self.renormalize, positions
        )
        if routings is not None:
            routings.append(routing)
        update = self.experts(tokens, routing).unflatten(0, x.shape[:2])
        return update if self.shared is None else update + self._run_shared_expert(self.shared, x)

    def _run_shared_expert(self, shared: FeedForward, x: Tensor) -> Tensor:
        if self.shared_gate is None:
            return shared(x)
        return torch.sigmoid(self.shared_gate(x)) * shared(x)
