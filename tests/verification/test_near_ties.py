"""A choice that rounding may decide is excused; any other is not."""

import torch

from growlm.growth import Widen, grow
from growlm.verification import ModelComparison, Status, check_router_scaling
from growlm.verification.comparison import NEAR_TIE_MARGIN
from tests.model.tiny_models import EXPERTS, build, random_tokens, tiny_config


def models_that_disagree(nudge):
    """Two equal mixtures; in the second, one column of router 0 is off by `nudge`."""
    old = build(tiny_config(**EXPERTS), dtype=torch.float64)
    new = build(tiny_config(**EXPERTS), dtype=torch.float64)
    with torch.no_grad():
        new.blocks[0].feed_forward.router.weight[0, 0] += nudge
    return old, new


def push_over(margin):
    """Two equal mixtures but for one decision of router 0, whose margin is `margin` and which falls the other way.

    Returns:
        Old model, new model, probe, and the (sequence, time) of the decision.
    """
    config = tiny_config(**EXPERTS)
    old, new = (build(config, dtype=torch.float64) for _ in range(2))
    probe = random_tokens(config, batch=4, time=24)
    seen = {}
    router = old.blocks[0].feed_forward.router
    hook = router.register_forward_hook(lambda _m, inputs, _o: seen.update(x=inputs[0]))
    token = int(ModelComparison(old, old, probe).old_trace.routings[0].selection_margin().argmin())
    hook.remove()
    direction = seen["x"][token]
    direction = direction / (direction @ direction)
    with torch.no_grad():
        second, third = (router.weight @ seen["x"][token]).topk(3).indices[1:].tolist()
        gap = float((router.weight[second] - router.weight[third]) @ seen["x"][token])
        for model, wanted in ((old, margin / 2), (new, -margin / 2)):
            model.blocks[0].feed_forward.router.weight[third] += (gap - wanted) * direction
    return old, new, probe, divmod(token, 24)


def test_a_near_tie_excuses_its_position_and_the_later_ones():
    old, new, probe, (sequence, time) = push_over(margin=NEAR_TIE_MARGIN / 10)
    changed = ModelComparison(old, new, probe).routing_changes
    assert changed.near_ties >= 1
    assert changed.hard_changes == 0
    assert changed.affected_positions[0][sequence, time:].all()
    assert not changed.affected_positions[0][sequence, :time].any()


def test_a_change_with_a_wider_margin_is_not_excused():
    old, new, probe, _ = push_over(margin=NEAR_TIE_MARGIN * 100)
    assert ModelComparison(old, new, probe).routing_changes.hard_changes >= 1


def test_a_choice_changed_by_a_wide_margin_fails_the_router_check():
    old, new = models_that_disagree(nudge=1.0)
    report = check_router_scaling(old, new, random_tokens(old.config, batch=4, time=24))
    assert report.status is Status.FAILED
    assert report.figures["changed_choices"] > 0


def test_a_widening_changes_no_choice_in_fp64():
    old = build(tiny_config(**EXPERTS), dtype=torch.float64)
    new = grow(old, [Widen(scale_factor=1.5, new_channels="copies")])
    changed = ModelComparison(
        old, new, random_tokens(old.config, batch=16, time=48)
    ).routing_changes
    assert (changed.near_ties, changed.hard_changes) == (0, 0)
    assert not changed.affected_positions[-1].any()
