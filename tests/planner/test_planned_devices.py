"""What the planner says of several devices: by hand, by counting, and of any model."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growlm.config import load_config
from growlm.config.phase_plan import make_plan
from growlm.model import ModelConfig
from growlm.planner import forecast as planner
from growlm.planner.calibration import Calibration
from growlm.planner.communication_cost import (
    BUCKET_BYTES,
    Collective,
    Interconnect,
    plan_communication,
)
from growlm.planner.forecast import DoesNotFitError, check_plan_fits, forecast_plan
from growlm.planner.memory_estimate import optimizer_state_bytes
from growlm.planner.planned_devices import resolve_calibration, resolve_machine
from growlm.planner.sharding_layout import STRATEGIES, ShardingLayout
from growlm.runtime.errors import UserError
from growlm.runtime.hardware import Machine
from tests.model.tiny_models import EXPERTS, tiny_config

FP32 = {"bytes_per_element": 4, "bytes_per_compute_element": 4}
BY_HAND = ModelConfig(
    vocab_size=10, d_model=4, n_layers=2, n_heads=1, n_kv_heads=1, head_dim=4, d_ff=8
)
"""Embedding 40, last norm 8; a block 16 in norms, 80 in attention, 76 in the feed-forward: 172."""
SPEED = Calibration(
    half_flops=1e12, single_flops=1e11, other_bytes=1e10, fresh_bytes=1e9, again_bytes=4e9,
    adamw_entries=1e9, call=1e-5,
)  # fmt: skip


def phase_of(model):
    """A phase that trains this model."""
    config = load_config("phase_plan=dense")
    config.model = type(config.model)(**asdict(model))
    return make_plan(config, model.vocab_size).phases[0]


def plan_of(*overrides):
    config = load_config(*overrides)
    return config, make_plan(config, 1024)


def test_ddp_by_hand():
    layout = ShardingLayout("ddp", 4, **FP32)
    phase = phase_of(BY_HAND)
    assert layout.weight_bytes(phase) == 4 * 392
    assert layout.unsharded_pass_bytes(BY_HAND) == 0
    sent = plan_communication(
        layout, phase, tokens_per_pass=8, activation_checkpointing=False
    ).bytes_by_kind(num_passes=3)
    assert sent == {"all_reduce": 2 * 3 / 4 * 4 * 392}, "once a step, not once a pass"


def test_fsdp_by_hand():
    """On four devices the embedding has 3 rows on each, of which two are filled up: 48 entries as a whole."""
    layout = ShardingLayout("fsdp", 4, **FP32)
    phase = phase_of(BY_HAND)
    assert layout.weight_bytes(phase) == 4 * (12 + 2 + 2 * 43)
    root, block = 48 + 8, 172
    # Backward: the root and two blocks, gradients of the root and of a block, and a copy of the latter.
    assert layout.unsharded_pass_bytes(BY_HAND) == 4 * (root + 2 * block + root + block + block)
    sent = plan_communication(
        layout, phase, tokens_per_pass=8, activation_checkpointing=False
    ).bytes_by_kind(num_passes=3)
    whole = root + 2 * block
    assert sent == {
        "all_gather": 3 * 3 / 4 * 4 * 2 * whole,
        "reduce_scatter": 3 * 3 / 4 * 4 * whole,
    }


@pytest.mark.parametrize(
    ("devices", "group", "replicas"), [(2, 2, 1), (4, 4, 1), (8, 4, 2), (6, 2, 3)]
)
def test_expert_parallelism_by_hand(devices, group, replicas):
    model = replace(BY_HAND, num_experts=4, top_k=2)
    layout = ShardingLayout("expert", devices, **FP32)
    phase = phase_of(model)
    expert = 8 * 4 + 8 + 4 * 8 + 4
    experts = 2 * 4 * expert
    others = phase.parameter_report.total - experts
    assert layout.weight_bytes(phase) == 4 * (others + experts / group)
    sent = plan_communication(
        layout, phase, tokens_per_pass=8, activation_checkpointing=False
    ).bytes_by_kind(num_passes=3)
    # There and back, forward and backward, in two layers: 8 tokens, each to two experts, of 4 channels.
    there = 8 * 2 * 4 * 4 * (group - 1) / group
    assert sent["all_to_all"] == 3 * 2 * 4 * there
    assert sent["all_reduce"] == pytest.approx(
        2 * (devices - 1) / devices * 4 * others
        + 2 * (replicas - 1) / replicas * 4 * experts / group,
        abs=1,
    )


@pytest.mark.slow
def test_two_processes_send_what_is_said(tmp_path):
    """Counted in torch's own DDP and FSDP2; 257 tokens and 5 experts do not come out even."""
    model = tiny_config(n_layers=3, vocab_size=257, **EXPERTS | {"num_experts": 5})
    script = Path(__file__).with_name("counted_traffic.py")
    text = json.dumps(asdict(model))
    started = [
        subprocess.Popen(
            [sys.executable, script, tmp_path / "meeting", str(rank), text],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    counted = [json.loads(process.communicate(timeout=120)[0]) for process in started]
    assert counted[0] == counted[1]
    found, phase = counted[0], phase_of(model)

    def said(strategy, product_width=4):
        layout = ShardingLayout(strategy, 2, 4, product_width)
        return plan_communication(
            layout, phase, tokens_per_pass=1, activation_checkpointing=False
        ).bytes_by_kind(num_passes=1)

    # Each of two sends half of what is gathered or shared out, and a sum is both.
    assert said("ddp") == found["ddp"]
    assert said("fsdp") == {kind: size / 2 for kind, size in found["32-true"].items()}
    assert said("fsdp", 2) == {kind: size / 2 for kind, size in found["bf16-mixed"].items()}


def test_links_by_hand():
    links = Interconnect(
        devices_per_node=8,
        intra_node_bandwidth=100.0,
        inter_node_bandwidth=10.0,
        latency_seconds=0.5,
    )

    def seconds(kind, devices, spacing=1, sent=1600.0, operations=0):
        return links.estimate_seconds(Collective(kind, sent, operations, devices, spacing))

    assert seconds("all_reduce", 1) == 0
    assert seconds("all_reduce", 8) == 16
    # Eight rings, each through a port of its own, which sees an eighth of it.
    assert seconds("all_reduce", 64) == 1600 / (8 * 10)
    # One device of the group in each node has one port; two have two.
    assert seconds("all_reduce", 8, spacing=8) == 160
    assert seconds("all_reduce", 16, spacing=4) == 80
    # To 63 others: 7 in the node, 56 elsewhere, through the device's own port.
    assert seconds("all_to_all", 64, sent=630.0) == 10 * 56 / 10
    assert seconds("all_to_all", 8, sent=700.0) == 7
    assert seconds("all_gather", 8, sent=0.0, operations=3) == 3 * 3 * 0.5


def test_what_is_waited_for():
    """A gradient of four buckets: three come while the backward pass computes, if that takes long enough."""
    phase = phase_of(BY_HAND)
    layout = ShardingLayout(
        "ddp", 2, bytes_per_element=BUCKET_BYTES // 98, bytes_per_compute_element=4
    )  # 392 entries in 4 buckets
    links = Interconnect(
        8, intra_node_bandwidth=BUCKET_BYTES, inter_node_bandwidth=1.0, latency_seconds=0.0
    )
    found = plan_communication(layout, phase, tokens_per_pass=1, activation_checkpointing=False)
    assert found.total_seconds(links, num_passes=5) == pytest.approx(4, rel=1e-3)
    for backward, waited in ((100.0, 1.0), (3.0, 1.0), (1.0, 3.0), (0.0, 4.0)):
        waiting = found.exposed_seconds(
            links, num_passes=5, forward_seconds=7.0, backward_seconds=backward
        )
        assert waiting == pytest.approx(waited, rel=1e-3)


MODELS = st.builds(
    lambda heads, hidden, layers, experts, tied: tiny_config(
        "llama", n_layers=layers, n_heads=heads, n_kv_heads=heads, head_dim=4, d_model=heads * 4,
        d_ff=hidden, num_experts=experts, top_k=2, tie_embeddings=tied,
    ),
    st.integers(1, 6), st.integers(1, 40), st.integers(1, 3), st.sampled_from((0, 2, 3, 8)),
    st.booleans(),
)  # fmt: skip


@given(model=MODELS, devices=st.integers(1, 40), more=st.integers(1, 40))
@settings(max_examples=10)
def test_more_devices_hold_less(model, devices, more):
    phase = phase_of(model)
    held = {}
    for number in (1, devices, devices + more):
        layout = ShardingLayout("fsdp", number, **FP32)
        held[number] = layout.weight_bytes(phase) + optimizer_state_bytes(model, "adamw", layout)
        assert number * held[number] >= held[1]
    assert held[devices + more] <= held[devices] <= held[1]
    for strategy in STRATEGIES:
        layout = ShardingLayout(strategy, devices, **FP32)
        assert layout.weight_bytes(phase) <= 4 * phase.parameter_report.total
        assert layout.unsharded_pass_bytes(model) == 0 or strategy == "fsdp"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_device_is_as_ever(strategy):
    """No strategy changes a figure of it; the formulas are those of test_planner.py."""
    config, plan = plan_of("trainer.precision=32-true")
    machine = Machine("cpu", "32-true", 10**12)
    plain = forecast_plan(config, plan, machine).to_json(SPEED)
    one = replace(config, trainer=replace(config.trainer, devices=1))
    found = forecast_plan(one, plan, machine, strategy).to_json(SPEED)
    assert found["phases"] == plain["phases"]
    for phase in plain["phases"]:
        assert phase["memory"]["weights"] == 4 * phase["total_parameters"]
        assert (phase["sent"], phase["seconds"]["waiting"]) == ({}, 0)


def test_what_devices_share():
    batches = [f"phases.{name}.batch_size=32" for name in ("dense", "moe", "wide", "deep")]
    config, plan = plan_of("trainer.devices=4", *batches)
    machine = Machine("gpu", "bf16-mixed", 10**12)
    one = forecast_plan(replace(config, trainer=replace(config.trainer, devices=1)), plan, machine)
    ddp, fsdp, expert = (forecast_plan(config, plan, machine, strategy) for strategy in STRATEGIES)
    for alone, a, b, c in zip(
        one.phase_forecasts,
        ddp.phase_forecasts,
        fsdp.phase_forecasts,
        expert.phase_forecasts,
        strict=True,
    ):
        assert a.memory.weights == alone.memory.weights
        assert a.memory.activations < 0.5 * alone.memory.activations, "a fourth of the batch"
        # To entries that fill up rows.
        assert b.memory.weights == pytest.approx(alone.memory.weights / 4, rel=1e-3)
        assert b.memory.disk == a.memory.disk == alone.memory.disk
        assert (c.memory.weights < a.memory.weights) == alone.phase.model_config.is_moe
        assert c.memory.activations <= b.memory.activations == a.memory.activations
    assert all(
        b.memory.growth_peak < a.memory.growth_peak
        for a, b in zip(ddp.phase_forecasts[1:], fsdp.phase_forecasts[1:], strict=True)
    )


def test_a_plan_that_does_not_fit_is_offered_shards():
    """16 bytes for each of 100 million parameters, which under ddp is on each device."""
    config, plan = plan_of(
        "phase_plan=dense", "model=dense_832", "trainer.devices=8", "phases.dense.batch_size=8"
    )
    machine = Machine("gpu", "bf16-mixed", 3 * 10**9 // 2)
    with pytest.raises(DoesNotFitError, match=r"on each of 8 devices; 1\.5 GB available") as caught:
        check_plan_fits(config, 1024, forecast_plan(config, plan, machine))
    assert "Try: trainer.strategy=fsdp" in str(caught.value)
    fitting = load_config(
        "phase_plan=dense", "model=dense_832", "trainer.devices=8", "phases.dense.batch_size=8",
        "trainer.strategy=fsdp",
    )  # fmt: skip
    check_plan_fits(fitting, 1024, forecast_plan(fitting, plan, machine))


def test_a_smaller_batch_leaves_one_sequence_for_each_device():
    config, plan = plan_of("phase_plan=dense", "phases.dense.batch_size=64", "trainer.devices=8")
    found = planner._candidate_changes(config, plan.phases, Machine("cpu", "bf16-mixed", 1))
    (change,) = (change for change in found if "phases.dense.batch_size" in change.changed_keys)
    assert change.overrides == ("phases.dense.batch_size=8", "phases.dense.accumulate=8")


def test_double_precision_takes_twice_the_memory():
    config, plan = plan_of("trainer.precision=64-true")
    single, double = (
        forecast_plan(config, plan, Machine("cpu", precision, 10**12)).phase_forecasts[1].memory
        for precision in ("32-true", "64-true")
    )
    for name in ("weights", "gradients", "optimizer", "disk"):
        assert getattr(double, name) == 2 * getattr(single, name)
    assert double.activations == pytest.approx(2 * single.activations, rel=0.02)
    assert double.training_peak == pytest.approx(2 * single.training_peak, rel=0.02)


def test_stated_devices_are_not_measured(monkeypatch):
    config, plan = plan_of("cluster=dgx_h100", "trainer.devices=8", "phase_plan=dense")
    machine = resolve_machine(config)
    assert machine == Machine("gpu", "bf16-mixed", 80 * 10**9)
    monkeypatch.setattr("growlm.planner.planned_devices.load_or_measure_calibration", None)
    speed = resolve_calibration(config, machine, lambda: None)
    cost = forecast_plan(config, plan, machine).phase_forecasts[0]
    seconds = cost.workload.estimate_seconds(speed)
    flops = cost.phase.flops_per_step / 8
    computing = flops / (0.4 * 989e12) + cost.phase.parameter_report.total * 40 / 3350e9
    assert seconds["step"] - seconds["waiting"] == pytest.approx(computing, rel=0.01)


def test_devices_of_this_machine_share_it():
    config, _ = plan_of("trainer.devices=8", "cluster.devices_per_node=4", "trainer=cpu")
    one = load_config("trainer=cpu")
    assert resolve_machine(config).memory_bytes == pytest.approx(
        resolve_machine(one).memory_bytes / 4, rel=0.2
    )
    stated = load_config("cluster.memory_gb=3", "trainer=cpu")
    assert resolve_machine(stated).memory_bytes == 3 * 10**9
    halved = SPEED.split_among(2)
    assert (halved.half_flops, halved.call) == (SPEED.half_flops / 2, SPEED.call)


def test_an_accelerator_that_is_stated_and_another_that_is_asked_for():
    with pytest.raises(UserError, match=r"trainer\.accelerator=cpu"):
        resolve_machine(load_config("cluster=dgx_h100", "trainer=cpu"))
