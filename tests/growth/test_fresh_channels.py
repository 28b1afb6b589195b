"""New heads, hidden units and channels that copy nothing: the function stays, and all of them learn at once."""

import pytest
import torch

from growlm.growth import Widen, build_growth_map, grow
from growlm.growth.channel_map import ChannelMap
from growlm.growth.optimizer_state import explain_inexactness
from growlm.runtime.errors import UserError
from growlm.verification import Status, detailed_growth_check
from tests.model.tiny_models import (
    EXPERTS,
    build,
    logits_of,
    max_difference,
    random_tokens,
    tiny_config,
)

SHAPES = {
    "dense": {},
    "experts": EXPERTS,
    "grouped": {"n_kv_heads": 2},
    "one key": {"n_kv_heads": 1},
}


def test_all_but_the_first_copies_are_fillers():
    channels = ChannelMap.with_equal_shares(2, torch.tensor([0, 0, 1, 1, 1])).without_copies()
    assert channels.source.tolist() == [0, -1, 1, -1, -1]
    assert channels.shares.tolist() == [1, 0, 1, 0, 0]
    rows = channels.select_first_copies(torch.arange(10).view(5, 2), 0)
    assert rows.tolist() == [[0, 1], [4, 5]]


@pytest.mark.parametrize("factor", [1.5, 2, 3])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", ["default", "llama"])
def test_every_check_passes_and_there_are_no_twins(family, shape, tied, factor):
    if factor == 1.5 and shape == "grouped":
        factor = 2.5
    model = build(tiny_config(family, tie_embeddings=tied, **SHAPES[shape]), std=0.2)
    operators = [Widen(scale_factor=factor, new_channels="fresh")]
    grown = grow(model, operators)
    tokens = random_tokens(model.config)
    assert max_difference(logits_of(grown, tokens), logits_of(model, tokens)) <= 1e-10
    report = detailed_growth_check(
        old_model=model,
        new_model=grown,
        probe=tokens,
        device="cpu",
        growth_map=build_growth_map(model.config, operators),
    )
    assert all(report.checks.values())
    assert report.checks["symmetry"].status is Status.NOT_APPLICABLE


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", ["default", "llama"])
def test_every_new_entry_that_adds_to_the_stream_learns_in_the_first_step(family, shape):
    """Their gradients are not those of any old one: nothing is a twin."""
    config = tiny_config(family, **SHAPES[shape])
    grown = grow(build(config, std=0.2), [Widen(scale_factor=2, new_channels="fresh")])
    grown(random_tokens(grown.config, batch=8)).square().sum().backward()
    output = grown.blocks[0].attention.output.weight
    width, heads = config.d_model, output.shape[1] // 2
    group = output.shape[1] // config.n_kv_heads if shape == "one key" else 2 * heads
    new_columns = torch.arange(output.shape[1]) % group >= group // 2
    assert not output[:, new_columns].any()
    assert (output.grad[:, new_columns].abs() > 0).all()
    assert (output.grad[width:].abs() > 0).all()
    gradients = output.grad[:, new_columns]
    assert len(gradients.T.unique(dim=0)) == gradients.shape[1]


def test_inside_a_group_new_heads_lie_between_old_ones():
    """Groups of three become groups of four; a new head's rows are as spread as the old rows."""
    config = tiny_config("llama", d_model=32, n_heads=6, n_kv_heads=2, head_dim=32)
    model = build(config, std=0.2)
    grown = grow(model, [Widen(n_heads=8, new_channels="fresh")])
    old = model.blocks[0].attention.query.weight.view(2, 3 * 32, 32)
    new = grown.blocks[0].attention.query.weight.view(2, 4 * 32, 32)
    assert torch.equal(new[:, : 3 * 32], old)
    assert new[:, 3 * 32 :].std().item() == pytest.approx(old.std().item(), rel=0.1)
    tokens = random_tokens(config)
    assert max_difference(logits_of(grown, tokens), logits_of(model, tokens)) <= 1e-10


def test_it_is_told_that_training_is_not_exact():
    config = tiny_config("llama")
    growth_map = build_growth_map(config, [Widen(scale_factor=2, new_channels="fresh")])
    assert explain_inexactness(growth_map) == ["random columns read the filler channels"]


ABOUT_COPIES = [{"split": "1:2"}, {"noise_snr_db": 10.0}, {"noise_std": 0.02}, {"noise_std": 0.0}]


@pytest.mark.parametrize("setting", ABOUT_COPIES, ids=str)
def test_what_is_about_copies_is_refused(setting):
    with pytest.raises(UserError, match="new_channels=fresh makes none"):
        build_growth_map(tiny_config(), [Widen(scale_factor=2, new_channels="fresh", **setting)])


@pytest.mark.parametrize("setting", ABOUT_COPIES, ids=str)
def test_auto_copies_where_something_about_copies_is_set(setting):
    assert widened("auto", **setting) == widened("copies", **setting)


def test_auto_is_fresh_otherwise():
    assert widened("auto") == widened("fresh") != widened("copies")


def widened(new_channels, **setting):
    model = build(tiny_config(), std=0.2)
    grown = grow(model, [Widen(scale_factor=2, new_channels=new_channels, **setting)])
    return {name: parameter.tolist() for name, parameter in grown.named_parameters()}
