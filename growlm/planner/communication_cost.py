"""What the devices of a run send one another in a step, and how long that takes over stated links."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from growlm.config.phase_plan import PlannedPhase
from growlm.planner.sharding_layout import Layout

BUCKET_BYTES = 25 * 2**20
"""Gradients that DDP sums at once (torch's `bucket_cap_mb`)."""


@dataclass(frozen=True)
class Exchange:
    """Messages of one kind."""

    kind: str
    """`all_reduce`, `all_gather`, `reduce_scatter` or `all_to_all`."""
    sent: float
    """Bytes that one device sends; it receives as many."""
    operations: int
    devices: int
    """That take part."""
    spacing: int = 1
    """They are every so many."""
    uncovered: float = 0.0
    """The part of it during which no device computes, whatever there is to compute."""


@dataclass(frozen=True)
class Links:
    """How fast devices reach one another."""

    per_node: int
    """Devices of a node."""
    inside: float
    """Bytes per second that a device sends to others of its node, while it receives as many."""
    between: float
    """Likewise to other nodes."""
    latency: float
    """Seconds of a message, whatever its size."""

    def seconds(self, exchange: Exchange) -> float:
        """Of an exchange with nothing else going on."""
        group = exchange.devices
        if group == 1:
            return 0.0
        together = max(1, min(group, self.per_node // exchange.spacing))  # of a group, in one node
        waiting = exchange.operations * self.latency * math.ceil(math.log2(group))
        if exchange.kind == "all_to_all":
            to_each = exchange.sent / (group - 1)
            near, far = to_each * (together - 1), to_each * (group - together)
            return waiting + max(near / self.inside, far / self.between)
        # Rings, one for each network port: each crosses a node's border once, with its part of the bytes.
        near = exchange.sent / self.inside if together > 1 else 0.0
        far = exchange.sent / (together * self.between) if together < group else 0.0
        return waiting + max(near, far)


@dataclass(frozen=True)
class Traffic:
    """Of a step of one device."""

    forward: tuple[Exchange, ...] = ()
    """In each pass, while the forward pass computes."""
    backward: tuple[Exchange, ...] = ()
    """In each pass, while the backward pass computes."""
    between: tuple[Exchange, ...] = ()
    """In each pass, while nothing computes."""
    last: tuple[Exchange, ...] = ()
    """In the last pass, while its backward pass computes."""

    def sent(self, passes: int) -> dict[str, int]:
        """Bytes that the device sends in a step, by kind."""
        found: dict[str, float] = {}
        for exchange in (*self.forward, *self.backward, *self.between):
            found[exchange.kind] = found.get(exchange.kind, 0) + passes * exchange.sent
        for exchange in self.last:
            found[exchange.kind] = found.get(exchange.kind, 0) + exchange.sent
        return {kind: round(sent) for kind, sent in found.items()}

    def seconds(self, links: Links, passes: int) -> float:
        """Of all of it in a step, one after another."""
        every = (*self.forward, *self.backward, *self.between)
        return passes * _sum(links, every) + _sum(links, self.last)

    def waiting(self, links: Links, passes: int, forward: float, backward: float) -> float:
        """Seconds of a step in which the device waits for others.

        Args:
            links: To them.
            passes: Of the step.
            forward: Seconds that a forward pass computes.
            backward: Seconds that a backward pass computes.
        """
        each = _not_covered(links, self.forward, forward)
        each += _not_covered(links, self.backward, backward) + _sum(links, self.between)
        return passes * each + _not_covered(links, self.last, backward)


def _sum(links: Links, exchanges: Sequence[Exchange]) -> float:
    return sum(links.seconds(exchange) for exchange in exchanges)


def _not_covered(links: Links, exchanges: Sequence[Exchange], computing: float) -> float:
    least = sum(exchange.uncovered * links.seconds(exchange) for exchange in exchanges)
    return max(least, _sum(links, exchanges) - computing)


def traffic(layout: Layout, phase: PlannedPhase, tokens: int, recomputed: bool) -> Traffic:
    """What a phase's step sends.

    Args:
        layout: How its model lies on the devices.
        phase: The phase.
        tokens: That one device reads in a pass.
        recomputed: Whether blocks are computed again in the backward pass.
    """
    if layout.devices == 1:
        return Traffic()
    if layout.strategy == "fsdp":
        return _sharded(layout, phase)
    if layout.strategy == "ddp" or not phase.model.is_moe:
        return Traffic(last=(_summed(layout.weight_bytes(phase), layout.devices),))
    return _expert_parallel(layout, phase, tokens, recomputed)


def _summed(gradients: int, devices: int, spacing: int = 1) -> Exchange:
    """A ring's all-reduce: every entry goes round twice but for the device's own part."""
    return Exchange(
        "all_reduce",
        sent=2 * (devices - 1) / devices * gradients,
        operations=math.ceil(gradients / BUCKET_BYTES),
        devices=devices,
        spacing=spacing,
        # The last bucket is full when the backward pass ends.
        uncovered=min(1.0, BUCKET_BYTES / gradients),
    )


def _sharded(layout: Layout, phase: PlannedPhase) -> Traffic:
    """FSDP2: everything is put together for the forward pass and again for the backward one, in full precision."""
    whole, layers = layout.whole(phase.model), phase.model.n_layers
    entries, devices = whole.root + layers * whole.block, layout.devices
    sent = (devices - 1) / devices * layout.width * entries
    return Traffic(
        forward=(
            Exchange(
                "all_gather",
                sent,
                layers + 1,
                devices,
                uncovered=(whole.root + whole.block) / entries,  # the first product needs both
            ),
        ),
        backward=(
            Exchange("all_gather", sent, layers + 1, devices),
            Exchange(
                "reduce_scatter",
                sent,
                layers + 1,
                devices,
                uncovered=whole.root / entries,  # the embedding's gradient is there last
            ),
        ),
    )


def _expert_parallel(layout: Layout, phase: PlannedPhase, tokens: int, recomputed: bool) -> Traffic:
    model = phase.model
    group = layout.expert_devices(model)
    replicas = layout.devices // group
    held = layout.weight_bytes(phase)
    experts = layout.expert_bytes(model)
    # To the experts and back; their gradients likewise; and once more what is computed again.
    times = 6 if recomputed else 4
    rows = tokens * model.top_k * model.d_model * layout.product_width * model.n_layers
    exchanges = Exchange(
        "all_to_all",
        sent=times * rows * (group - 1) / group,
        operations=times * model.n_layers,
        devices=group,
    )
    last = [_summed(held - experts, layout.devices)]
    if replicas > 1:
        last.append(_summed(experts, replicas, spacing=group))
    return Traffic(between=(exchanges,) if group > 1 else (), last=tuple(last))
