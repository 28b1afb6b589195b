"""Estimate the bytes that the devices of a run send in a step, and the time this takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from growlm.config.phase_plan import PlannedPhase
from growlm.planner.sharding_layout import ShardingLayout

BUCKET_BYTES = 25 * 2**20
"""Bytes of gradients that DDP reduces at once (torch's `bucket_cap_mb`)."""


@dataclass(frozen=True)
class Collective:
    """Collective operations of one kind."""

    kind: str
    """`all_reduce`, `all_gather`, `reduce_scatter` or `all_to_all`."""
    bytes_sent: float
    """Bytes that one device sends; it receives as many."""
    num_calls: int
    num_devices: int
    """Devices that take part."""
    rank_stride: int = 1
    """Distance between the ranks that take part."""
    exposed_fraction: float = 0.0
    """Fraction of its time that cannot overlap with computation."""


@dataclass(frozen=True)
class Interconnect:
    """Bandwidth and latency between devices."""

    devices_per_node: int
    """Number of devices in a node."""
    intra_node_bandwidth: float
    """Bytes per second that a device sends within its node, while it receives as many."""
    inter_node_bandwidth: float
    """Bytes per second that a device sends to other nodes, while it receives as many."""
    latency_seconds: float
    """Seconds that a message takes in addition, whatever its size."""

    def estimate_seconds(self, collective: Collective) -> float:
        """Return the seconds of a collective that has the network to itself."""
        group = collective.num_devices
        if group == 1:
            return 0.0
        in_node = max(1, min(group, self.devices_per_node // collective.rank_stride))
        latency = collective.num_calls * self.latency_seconds * math.ceil(math.log2(group))
        if collective.kind == "all_to_all":
            to_each = collective.bytes_sent / (group - 1)
            near, far = to_each * (in_node - 1), to_each * (group - in_node)
            return latency + max(near / self.intra_node_bandwidth, far / self.inter_node_bandwidth)
        # One ring per network port; each ring crosses a node's border once, with its share of the bytes.
        near = collective.bytes_sent / self.intra_node_bandwidth if in_node > 1 else 0.0
        far = (
            collective.bytes_sent / (in_node * self.inter_node_bandwidth)
            if in_node < group
            else 0.0
        )
        return latency + max(near, far)


@dataclass(frozen=True)
class StepCommunication:
    """Collectives of one device in a step, by when they take place."""

    forward: tuple[Collective, ...] = ()
    """Collectives of each pass that overlap with the forward computation."""
    backward: tuple[Collective, ...] = ()
    """Collectives of each pass that overlap with the backward computation."""
    blocking: tuple[Collective, ...] = ()
    """Collectives of each pass that overlap with no computation."""
    last_backward: tuple[Collective, ...] = ()
    """Collectives of the last pass that overlap with its backward computation."""

    def bytes_by_kind(self, num_passes: int) -> dict[str, int]:
        """Return the bytes that the device sends in a step, by kind of collective."""
        sent: dict[str, float] = {}
        for collective in (*self.forward, *self.backward, *self.blocking):
            sent[collective.kind] = (
                sent.get(collective.kind, 0) + num_passes * collective.bytes_sent
            )
        for collective in self.last_backward:
            sent[collective.kind] = sent.get(collective.kind, 0) + collective.bytes_sent
        return {kind: round(num_bytes) for kind, num_bytes in sent.items()}

    def total_seconds(self, interconnect: Interconnect, num_passes: int) -> float:
        """Return the seconds of all collectives of a step, one after another."""
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
        """Return the seconds of a step in which the device waits for communication.

        Args:
            interconnect: Links between the devices.
            num_passes: Passes in the step.
            forward_seconds: Computing time of a forward pass.
            backward_seconds: Computing time of a backward pass.
        """
        per_pass = _exposed_seconds(interconnect, self.forward, forward_seconds)
        per_pass += _exposed_seconds(interconnect, self.backward, backward_seconds) + _sum_seconds(
            interconnect, self.blocking
        )
        return num_passes * per_pass + _exposed_seconds(
            interconnect, self.last_backward, backward_seconds
        )


def _sum_seconds(interconnect: Interconnect, collectives: Sequence[Collective]) -> float:
    return sum(interconnect.estimate_seconds(collective) for collective in collectives)


def _exposed_seconds(
    interconnect: Interconnect, collectives: Sequence[Collective], compute_seconds: float
) -> float:
    least = sum(
        collective.exposed_fraction * interconnect.estimate_seconds(collective)
        for collective in collectives
    )
    return max(least, _sum_seconds(interconnect, collectives) - compute_seconds)


def plan_communication(
    layout: ShardingLayout,
    phase: PlannedPhase,
    tokens_per_pass: int,
    activation_checkpointing: bool,
) -> StepCommunication:
    """Return the collectives of a step of a phase.

    Args:
        layout: Sharding of the model over the devices.
        phase: Phase of the plan.
        tokens_per_pass: Tokens that one device reads in a pass.
        activation_checkpointing: Whether blocks are recomputed in the backward pass.
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
    """Return a ring all-reduce: every device sends all gradients twice, except for its own share."""
    return Collective(
        "all_reduce",
        bytes_sent=2 * (devices - 1) / devices * gradients,
        num_calls=math.ceil(gradients / BUCKET_BYTES),
        num_devices=devices,
        rank_stride=rank_stride,
        # The last bucket is only full when the backward pass ends.
        exposed_fraction=min(1.0, BUCKET_BYTES / gradients),
    )


def _fsdp_communication(layout: ShardingLayout, phase: PlannedPhase) -> StepCommunication:
    """Return the collectives of FSDP2.

    It gathers all weights for the forward pass and again for the backward pass, in full precision.
    """
    whole, layers = layout.unsharded_sizes(phase.model_config), phase.model_config.n_layers
    entries, devices = whole.root_elements + whole.all_block_elements, layout.num_devices
    sent = (devices - 1) / devices * layout.bytes_per_element * entries
    return StepCommunication(
        forward=(
            Collective(
                "all_gather",
                sent,
                layers + 1,
                devices,
                # The first product needs the root's and the first block's weights.
                exposed_fraction=(whole.root_elements + whole.block_elements) / entries,
            ),
        ),
        backward=(
            Collective("all_gather", sent, layers + 1, devices),
            Collective(
                "reduce_scatter",
                sent,
                layers + 1,
                devices,
                # The embedding's gradient is complete last.
                exposed_fraction=whole.root_elements / entries,
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
    # Tokens to the experts and back, their gradients likewise, and the forward pair again if it is recomputed.
    times = 6 if activation_checkpointing else 4
    rows = tokens * model.top_k * model.d_model * layout.bytes_per_compute_element
    layers = len(model.mixtures)
    all_to_all = Collective(
        "all_to_all",
        bytes_sent=times * layers * rows * (group - 1) / group,
        num_calls=times * layers,
        num_devices=group,
    )
    last = [_all_reduce(held - experts, layout.num_devices)]
    if replicas > 1:
        last.append(_all_reduce(experts, replicas, rank_stride=group))
    return StepCommunication(blocking=(all_to_all,) if group > 1 else (), last_backward=tuple(last))
