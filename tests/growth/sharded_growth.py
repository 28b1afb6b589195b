"""One of several processes that grow, check and look at sharded models, beside the same models whole."""

import math
import os
import sys
from datetime import timedelta

import torch
from torch.distributed.device_mesh import init_device_mesh

from growlm.distributed.dtensors import get_full_tensor, get_local_tensor, is_sharded
from growlm.distributed.startup import init_distributed
from growlm.growth import Deepen, MultiplyExperts, Upcycle, Widen
from growlm.growth.grow_model import apply_growth, build_growth_map
from growlm.growth.growth_rng import GrowthRng
from growlm.growth.optimizer_state import grow_optimizer_state
from growlm.inference.generation import generate
from growlm.model import TransformerLM
from growlm.model.fsdp import apply_fsdp, create_sharded_model, shard_optimizer_states
from growlm.model.keyed_rng import keyed_normal
from growlm.runtime.exit_codes import exit_process
from growlm.training.nan_check import describe_nonfinite_weight
from growlm.verification import detailed_growth_check, quick_sanity_check
from growlm.verification.router_collapse import compute_expert_similarity
from tests.growth.own_decoder import Decoder, decoder, tokens
from tests.machines.imitation import imitate_machine
from tests.model.tiny_models import build, random_tokens, tiny_config

GROWTHS = (
    [Upcycle(num_experts=4, drop_fraction=0.5)],
    [Widen(scale_factor=1.5, noise_std=1e-2), Deepen(extra_layers=1, init="identity")],
    [MultiplyExperts(2), Widen(scale_factor=2, noise_snr_db=40.0)],
    [Widen(scale_factor=2, new_channels="fresh"), Deepen(init="fresh")],
)
PARTS = {
    "default": {
        "norm": {"parallel_residual": True, "shared": True},
        "embedding": {"head_bias": True},
    },
    "llama": {},
}
"""Parts of the model of each family that few models have."""
PROGRAM = __file__


def assert_same(expected, sharded):
    """The tensors of a sharded model are, to the bit, those of the whole one."""
    assert expected.keys() == sharded.keys()
    for name, tensor in sharded.items():
        assert torch.equal(get_full_tensor(tensor), expected[name]), name
        if is_sharded(tensor):
            assert len(get_local_tensor(tensor)) <= -(-len(tensor) // 2), name


def random_states(model):
    """As if AdamW had made some steps."""
    return {
        name: {
            "step": torch.tensor(3.0),
            "exp_avg": keyed_normal(tuple(p.shape), "mean", name),
            "exp_avg_sq": keyed_normal(tuple(p.shape), "square", name).square_(),
        }
        for name, p in model.named_parameters()
    }


def assert_moments_grow_alike(growth_map, model, mesh):
    for mode in ("carry", "asymmetric", "reset"):
        states = random_states(model)
        own = shard_optimizer_states(states, mesh)
        expected, grown = (grow_optimizer_state(growth_map, s, mode) for s in (states, own))
        assert not own, "old moments are let go of"
        assert expected.keys() == grown.keys()
        for name, state in expected.items():
            assert_same(state, grown[name])


def assert_checks_agree(expected, found):
    """Figures that do not depend on the order of sums are the same, the others nearly."""
    assert bool(found)
    assert math.isclose(found.loss_after, expected.loss_after, rel_tol=1e-9)
    for name, check in expected.checks.items():
        assert found.checks[name].status is check.status, name
    counts = [report.checks["symmetry"].figures.get("axes", {}) for report in (expected, found)]
    assert counts[0].keys() == counts[1].keys()
    for axis, count in counts[0].items():
        for figure, value in count.items():
            assert math.isclose(counts[1][axis][figure], value, rel_tol=1e-6), (axis, figure)


def grow_beside(family, mesh):
    """A model whole, the same one sharded; both through all growths."""
    config = tiny_config(family, d_ff=28, **PARTS[family])
    assert_same(
        TransformerLM(config, 3).state_dict(), create_sharded_model(config, 3, mesh).state_dict()
    )
    plain, sharded = build(config), build(config)
    apply_fsdp(sharded, mesh)
    for index, operators in enumerate(GROWTHS):
        growth_map = build_growth_map(plain.config, operators)
        assert_moments_grow_alike(growth_map, plain, mesh)
        rngs = [GrowthRng(5, index), GrowthRng(5, index)]
        old = plain, sharded
        plain, sharded = (
            apply_growth(model, growth_map, rng) for model, rng in zip(old, rngs, strict=True)
        )
        assert_same(plain.state_dict(), sharded.state_dict())
        assert rngs[0].noise_log.levels == rngs[1].noise_log.levels
        probe = random_tokens(plain.config, batch=2, time=12)
        reports = [
            detailed_growth_check(
                old_model=before, new_model=after, probe=probe, device="cpu", growth_map=growth_map
            )
            for before, after in zip(old, (plain, sharded), strict=True)
        ]
        assert_checks_agree(*reports)
    sanity = [quick_sanity_check(model, probe, "cpu") for model in (plain, sharded)]
    assert sanity[1]
    assert math.isclose(sanity[0].gradient_norm, sanity[1].gradient_norm, rel_tol=1e-9)
    assert math.isclose(
        compute_expert_similarity(plain), compute_expert_similarity(sharded), rel_tol=1e-5
    )
    texts = [generate(model, [[1, 2, 3]], 5) for model in (plain, sharded)]
    assert texts[0] == texts[1]
    return sharded


def grow_half_beside(mesh):
    """A model in half precision, whole and sharded: parts of its weights add up to them in both."""
    config = tiny_config("llama", num_experts=4)
    plain, sharded = (build(config, dtype=torch.bfloat16) for _ in range(2))
    apply_fsdp(sharded, mesh)
    growth_map = build_growth_map(
        config, [MultiplyExperts(2), Widen(scale_factor=3, noise_std=1e-2)]
    )
    rngs = [GrowthRng(5), GrowthRng(5)]
    grown = [
        apply_growth(model, growth_map, rng)
        for model, rng in zip((plain, sharded), rngs, strict=True)
    ]
    assert_same(grown[0].state_dict(), grown[1].state_dict())
    assert rngs[0].noise_log.levels == rngs[1].noise_log.levels


class LogitsDecoder(Decoder):
    """Returns a tensor: of other objects, FSDP2 of torch 2.11 does not see that they need a backward pass."""

    def forward(self, input_ids):
        return super().forward(input_ids).logits


def grow_own_decoder_beside(mesh):
    """A model that is not growlm's, whole and sharded."""
    plain, sharded = (decoder(torch.float32, LogitsDecoder) for _ in range(2))
    apply_fsdp(sharded, mesh)
    operators = [Upcycle(num_experts=4), Widen(scale_factor=1.5, noise_std=1e-2), Deepen()]
    maps = [build_growth_map(model, operators) for model in (plain, sharded)]
    assert maps[0].new_config == maps[1].new_config
    grown = [
        apply_growth(plain, maps[0], GrowthRng(5)),
        apply_growth(sharded, maps[1], GrowthRng(5)),
    ]
    assert_same(grown[0].state_dict(), grown[1].state_dict())
    assert torch.equal(*(get_full_tensor(model(tokens())) for model in grown))
    report = detailed_growth_check(
        old_model=sharded,
        new_model=grown[1],
        probe=tokens(),
        device="cpu",
        growth_map=maps[1],
    )
    assert report


def main():
    imitate_machine()
    with init_distributed("cpu", timedelta(minutes=2)) as world:
        mesh = init_device_mesh("cpu", (world.world_size,))
        for family in sys.argv[1:]:
            model = grow_beside(family, mesh)
        grow_half_beside(mesh)
        grow_own_decoder_beside(mesh)
        assert describe_nonfinite_weight(model) is None
        if os.environ["RANK"] == "1":  # all must know of what one of them holds
            get_local_tensor(model.head_weight)[0] = float("nan")
        assert describe_nonfinite_weight(model) == "the weight embedding.weight holds NaN"


if __name__ == "__main__":
    main()
    exit_process(0)
