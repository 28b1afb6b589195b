"""What the devices of a run send one another in a step, and how long that takes over stated links."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from growlm.config.phase_plan import PlannedPhase
from growlm.planner.sharding_layout import ShardingLayout

BUCKET_BYTES = 25 * 2**20
"""Gradients that DDP sums at once (torch's `bucket_cap_mb`)."""


@dataclass(frozen=True)
class Collective:
    """Messages of one kind."""

    kind: str
    """`all_reduce`, `all_gather`, `reduce_scatter` or `all_to_all`."""
    bytes_sent: float
    """Bytes that one device sends; it receives as many."""
    num_calls: int
    num_devices: int
    """That take part."""
    rank_stride: int = 1
    """They are every so many."""
    exposed_fraction: float = 0.0
    """The part of it during which no device computes, whatever there is to compute."""


@dataclass(frozen=True)
class Interconnect:
    """How fast devices reach one another."""

    devices_per_node: int
    """Devices of a node."""
    intra_node_bandwidth: float
    """Bytes per second that a device sends to others of its node, while it receives as many."""
    inter_node_bandwidth: float
    """Likewise to other nodes."""
    latency_seconds: float
    """Seconds of a message, whatever its size."""

    def estimate_seconds(self, collective: Collective) -> float:
        """Of an exchange with nothing else going on."""
        group = collective.num_devices
        if group == 1:
            return 0.0
        together = max(
            1, min(group, self.devices_per_node // collective.rank_stride)
        )  # of a group, in one node
        waiting = collective.num_calls * self.latency_seconds * math.ceil(math.log2(group))
        if collective.kind == "all_to_all":
            to_each = collective.bytes_sent / (group - 1)
            near, far = to_each * (together - 1), to_each * (group - together)
            return waiting + max(near / self.intra_node_bandwidth, far / self.inter_node_bandwidth)
        # Rings, one for each network port: each crosses a node's border once, with its part of the bytes.
        near = collective.bytes_sent / self.intra_node_bandwidth if together > 1 else 0.0
        far = (
            collective.bytes_sent / (together * self.inter_node_bandwidth)
            if together < group
            else 0.0
        )
        return waiting + max(near, far)


@dataclass(frozen=True)
class StepCommunication:
    """Of a step of one device."""

    forward: tuple[Collective, ...] = ()
    """In each pass, while the forward pass computes."""
    backward: tuple[Collective, ...] = ()
    """In each pass, while the backward pass computes."""
    blocking: tuple[Collective, ...] = ()
    """In each pass, while nothing computes."""
    last_backward: tuple[Collective, ...] = ()
    """In the last pass, while its backward pass computes."""

    def bytes_by_kind(self, num_passes: int) -> dict[str, int]:
        """Bytes that the device sends in a step, by kind."""
        found: dict[str, float] = {}
        for exchange in (*self.forward, *self.backward, *self.blocking):
            found[exchange.kind] = found.get(exchange.kind, 0) + num_passes * exchange.bytes_sent
        for exchange in self.last_backward:
            found[exchange.kind] = found.get(exchange.kind, 0) + exchange.bytes_sent
        return {kind: round(sent) for kind, sent in found.items()}

    def total_seconds(self, interconnect: Interconnect, num_passes: int) -> float:
        """Of all of it in a step, one after another."""
        every = (*self.forward, *self.backward, *self.blocking)
        return num_passes * _sum_seconds(interconnect, every) + _sum_seconds(
            interconnect, self.last_backward
        )

    def exposed_seconds(
        self,
        interconnect: Interconnect,
        num_passes: int,
        forward_seconds: float,
        backward_seconds: float,
    ) -> float:
        """Seconds of a step in which the device waits for others.

        Args:
            links: To them.
            passes: Of the step.
            forward: Seconds that a forward pass computes.
            backward: Seconds that a backward pass computes.
        """
        each = _exposed_seconds(interconnect, self.forward, forward_seconds)
        each += _exposed_seconds(interconnect, self.backward, backward_seconds) + _sum_seconds(
            interconnect, self.blocking
        )
        return num_passes * each + _exposed_seconds(
            interconnect, self.last_backward, backward_seconds
        )


def _sum_seconds(interconnect: Interconnect, collectives: Sequence[Collective]) -> float:
    return sum(interconnect.estimate_seconds(exchange) for exchange in collectives)


def _exposed_seconds(
    interconnect: Interconnect, collectives: Sequence[Collective], compute_seconds: float
) -> float:
    least = sum(
        exchange.exposed_fraction * interconnect.estimate_seconds(exchange)
        for exchange in collectives
    )
    return max(least, _sum_seconds(interconnect, collectives) - compute_seconds)


def plan_communication(
    layout: ShardingLayout,
    phase: PlannedPhase,
    tokens_per_pass: int,
    activation_checkpointing: bool,
) -> StepCommunication:
    """What a phase's step sends.

    Args:
        layout: How its model lies on the devices.
        phase: The phase.
        tokens: That one device reads in a pass.
        recomputed: Whether blocks are computed again in the backward pass.
    """
    if layout.num_devices == 1:
        return StepCommunication()
    if layout.strategy == "fsdp":
        return _fsdp_communication(layout, phase)
    if layout.strategy == "ddp" or not phase.model_config.is_moe:
        return StepCommunication(
            last_backward=(_all_reduce(layout.weight_bytes(phase), layout.num_devices),)
        )
    return _expert_parallel_communication(layout, phase, tokens_per_pass, activation_checkpointing)


def _all_reduce(gradients: int, devices: int, rank_stride: int = 1) -> Collective:
    """A ring's all-reduce: every entry goes round twice but for the device's own part."""
    return Collective(
        "all_reduce",
        bytes_sent=2 * (devices - 1) / devices * gradients,
        num_calls=math.ceil(gradients / BUCKET_BYTES),
        num_devices=devices,
        rank_stride=rank_stride,
        # The last bucket is full when the backward pass ends.
        exposed_fraction=min(1.0, BUCKET_BYTES / gradients),
    )


def _fsdp_communication(layout: ShardingLayout, phase: PlannedPhase) -> StepCommunication:
    """FSDP2: everything is put together for the forward pass and again for the backward one, in full precision."""
    whole, layers = layout.unsharded_sizes(phase.model_config), phase.model_config.n_layers
    entries, devices = whole.root_elements + layers * whole.block_elements, layout.num_devices
    sent = (devices - 1) / devices * layout.bytes_per_element * entries
    return StepCommunication(
        forward=(
            Collective(
                "all_gather",
                sent,
                layers + 1,
                devices,
                exposed_fraction=(whole.root_elements + whole.block_elements)
                / entries,  # the first product needs both
            ),
        ),
        backward=(
            Collective("all_gather", sent, layers + 1, devices),
            Collective(
                "reduce_scatter",
                sent,
                layers + 1,
                devices,
                exposed_fraction=whole.root_elements
                / entries,  # the embedding's gradient is there last
            ),
        ),
    )


def _expert_parallel_communication(
    layout: ShardingLayout, phase: PlannedPhase, tokens: int, activation_checkpointing: bool
) -> StepCommunication:
    model = phase.model_config
    group = layout.expert_parallel_size(model)
    replicas = layout.num_devices // group
    held = layout.weight_bytes(phase)
    experts = layout.expert_bytes(model)
    # To the experts and back; their gradients likewise; and once more what is computed again.
    times = 6 if activation_checkpointing else 4
    rows = tokens * model.top_k * model.d_model * layout.bytes_per_compute_element * model.n_layers
    exchanges = Collective(
        "all_to_all",
        bytes_sent=times * rows * (group - 1) / group,
        num_calls=times * model.n_layers,
        num_devices=group,
    )
    last = [_all_reduce(held - experts, layout.num_devices)]
    if replicas > 1:
        last.append(_all_reduce(experts, replicas, rank_stride=group))
    return StepCommunication(blocking=(exchanges,) if group > 1 else (), last_backward=tuple(last))
