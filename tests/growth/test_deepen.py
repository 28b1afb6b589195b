"""Which block each new one copies, and what a plain copy costs."""

import pytest
import torch

from growlm.growth import Deepen, Upcycle, Widen, build_growth_map, grow
from growlm.growth.growth_map import BlockOrigin
from tests.model.tiny_models import (
    EXPERTS,
    build,
    logits_of,
    max_difference,
    random_tokens,
    tiny_config,
)

OUTPUTS = ("attention.output.", "feed_forward.down.", "feed_forward.experts.down")


def origins(n_layers, *operators):
    return build_growth_map(tiny_config(n_layers=n_layers), operators).blocks


def kept(*sources):
    return [BlockOrigin(source) for source in sources]


def new(*sources, kind="identity"):
    return [BlockOrigin(source, kind) for source in sources]


@pytest.mark.parametrize(
    ("n_layers", "extra_layers", "placement", "expected"),
    [
        (3, 2, "append", kept(0, 1, 2) + new(2, 2)),
        (3, 2, "stack", kept(0, 1, 2) + new(0, 1)),
        (3, 5, "stack", kept(0, 1, 2) + new(0, 1, 2, 0, 1)),
        # floor((j + 1/2) · 4 / 2) = 1, 3
        (4, 2, "interleave", kept(0, 1) + new(1) + kept(2, 3) + new(3)),
        # floor((j + 1/2) · 3 / 1) = 1
        (3, 1, "interleave", kept(0, 1) + new(1) + kept(2)),
        # floor((j + 1/2) · 2 / 5) = 0, 0, 1, 1, 1
        (2, 5, "interleave", kept(0) + new(0, 0) + kept(1) + new(1, 1, 1)),
    ],
)
def test_origins_worked_by_hand(n_layers, extra_layers, placement, expected):
    operator = Deepen(extra_layers=extra_layers, placement=placement, init="identity")

    assert list(origins(n_layers, operator)) == expected


def test_origins_through_two_growths():
    blocks = origins(
        2,
        Deepen(placement="interleave", init="identity"),
        Deepen(extra_layers=4, placement="stack", init="identity"),
    )

    # floor(1/2 · 2) = 1: the first growth gives 0, 1, 1'; the second stacks 0, 1, 1', 0 on it.
    assert list(blocks) == kept(0, 1) + new(1, 0, 1, 1, 0)


def test_residual_stream_behind_new_blocks_is_that_of_the_kept_one():
    growth_map = build_growth_map(
        tiny_config(n_layers=2), [Deepen(extra_layers=2, placement="interleave", init="identity")]
    )

    assert [growth_map.old_block_at(block) for block in range(4)] == [0, 0, 1, 1]


@pytest.mark.parametrize("experts", [{}, EXPERTS])
def test_identity_zeroes_output_projections_and_copies_the_rest(experts):
    model = build(tiny_config(**experts))
    old, grown = (
        model.blocks[1].state_dict(),
        grow(model, [Deepen(init="identity")]).blocks[2].state_dict(),
    )

    for name, tensor in grown.items():
        if name.startswith(OUTPUTS):
            assert not tensor.any()
        else:
            assert torch.equal(tensor, old[name])
    assert sum(name.startswith(OUTPUTS) for name in grown) == 4


def test_identity_blocks_train_from_the_first_step():
    model = build(tiny_config(), std=0.2)
    grown = grow(model, [Deepen(init="identity")])

    grown(random_tokens(model.config)).square().sum().backward()

    block = grown.blocks[2]
    assert block.attention.output.weight.grad.abs().max() > 1e-3
    assert block.feed_forward.down.weight.grad.abs().max() > 1e-3


@pytest.mark.parametrize("placement", ["append", "interleave", "stack"])
def test_a_plain_copy_moves_the_logits_and_says_so(placement):
    model = build(tiny_config(), std=0.2)
    operator = Deepen(extra_layers=1, placement=placement, init="copy")
    tokens = random_tokens(model.config)
    growth_map = build_growth_map(model.config, [operator])
    source = next(origin.source for origin in growth_map.blocks if origin.kind == "copy")
    place = next(i for i, origin in enumerate(growth_map.blocks) if origin.kind == "copy")

    grown = grow(model, [operator])

    assert not growth_map.lossless
    assert growth_map.description == [
        f"Layer {place} from layer {source}, plain copy (not lossless)"
    ]
    assert max_difference(logits_of(grown, tokens), logits_of(model, tokens)) > 1e-3
    for name, tensor in grown.blocks[place].state_dict().items():
        assert torch.equal(tensor, model.blocks[source].state_dict()[name])


def test_one_lossy_operator_makes_the_sequence_lossy():
    config = tiny_config()
    lossy = Deepen(init="copy")

    assert not build_growth_map(
        config, [lossy, Widen(scale_factor=2, new_channels="copies")]
    ).lossless
    assert not build_growth_map(config, [Upcycle(), lossy]).lossless
    assert build_growth_map(
        config, [Upcycle(), Deepen(init="identity"), Widen(scale_factor=2, new_channels="copies")]
    ).lossless


def test_identity_says_what_came_from_what():
    description = build_growth_map(tiny_config(n_layers=12), [Deepen(init="identity")]).description

    assert description == ["Layer 12 from layer 11, output projections set to zero"]


@pytest.mark.parametrize("experts", [{}, EXPERTS])
@pytest.mark.parametrize("family", ["default", "llama"])
def test_fresh_blocks_keep_the_function_and_copy_no_matrix(family, experts):
    model = build(tiny_config(family, d_model=32, n_layers=2, **experts), std=0.2)
    grown = grow(model, [Deepen(init="fresh")])
    tokens = random_tokens(model.config)
    assert torch.equal(logits_of(grown, tokens), logits_of(model, tokens))

    source = dict(model.blocks[1].named_parameters())
    for name, new in grown.blocks[2].named_parameters():
        old = source[name]
        if name.startswith(OUTPUTS):
            assert not new.any()
        elif "norm" in name or "bias" in name:
            assert torch.equal(new, old)
        else:
            assert torch.isclose(new, old).float().mean() < 0.01
            assert new.std().item() == pytest.approx(old.std().item(), rel=0.15)
    grown(tokens).square().sum().backward()
    assert (grown.blocks[2].attention.output.weight.grad.abs() > 0).all()
