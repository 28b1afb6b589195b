"""What the study compares: every arm, as overrides of growlm.train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GRID = (4e-3, 8e-3)
"""Learning rates that every tuned arm begins with; from the better one on by factors of 2 until it gets worse."""
SHARES = (0.65, 0.8, 1.0)
"""Of the budget: how long grown models train, each time with a decay of its own, to see when they reach a loss.
Growth after half of the budget is before the shortest one's decay."""
PLANNED_GROWTH = 0.25
"""Share of the budget before the (first) growth in the plans of conf/experiment."""
TUNING_SEED = 0
"""Rates are tuned with it, and nothing else is: the best of several is too good to be reported."""
SEEDS = (1, 2, 3)
SCREENING = SEEDS[:1]
"""For what is only looked at once: its figures have no spread."""


@dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but their seed, their learning rate and how long they train.

    Args:
        axis: What grows.
        name: What is done about it: `grown`, `scratch` and `continue`, or a change to `grown`.
        factor: Which factor the change turns; empty for those three.
        overrides: Of growlm.train.
        seeds: It is run with.
        shares: Of the budget that it is trained for.
        grows_at: Share of the budget before the growth, in place of the plan's.
        own_rate: A change that looks for its own learning rate, as what is trained for several lengths does.
    """

    axis: str
    name: str
    factor: str = ""
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = SEEDS
    shares: tuple[float, ...] = (1.0,)
    grows_at: float | None = None
    own_rate: bool = False

    @property
    def growth_share(self) -> float:
        """Of the budget, before the growth."""
        return PLANNED_GROWTH if self.grows_at is None else self.grows_at

    @property
    def key(self) -> str:
        """As it is called on the command line and in the records."""
        return f"{self.axis}/{self.name}"

    @property
    def is_grown(self) -> bool:
        """Whether it is trained for several lengths, and so can be held against the baselines at equal loss."""
        return self.baseline == "none" and len(self.shares) > 1

    @property
    def is_tuned(self) -> bool:
        """Whether it looks for its own learning rate; a change to `grown` takes the rate of `grown`."""
        return not self.factor or self.is_grown or self.own_rate

    @property
    def baseline(self) -> str:
        """As the key of the same name has it."""
        return self.name if self.name in ("scratch", "continue") else "none"


@dataclass(frozen=True)
class Axis:
    """A way to grow: the plan, and the arms on it."""

    name: str
    title: str
    overrides: tuple[str, ...]
    is_headline: bool
    """Whether its three arms get three seeds."""
    source: str
    """The axis whose `continue` arm is this one's too: the same first model, the same budget."""
    changes: tuple[Arm, ...] = ()

    def main_arm(self, name: str) -> Arm:
        """`continue`, `scratch` or `grown`."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def grown_arms(self) -> list[Arm]:
        """Those that are held against the baselines."""
        return [arm for arm in self.arms if arm.is_grown]

    @property
    def arms(self) -> list[Arm]:
        """All of them."""
        seeds = SEEDS if self.is_headline else SCREENING
        main = [
            Arm(self.source, "continue", seeds=seeds),
            Arm(self.name, "scratch", seeds=seeds, shares=(0.5, 1.0)),
            Arm(self.name, "grown", seeds=seeds, shares=SHARES),
        ]
        return [*main, *self.changes]


def _change(axis: str, factor: str, name: str, *overrides: str, **settings: Any) -> Arm:
    return Arm(axis, name, factor, overrides, **settings)


def _recipe(axis: str, seeds: tuple[int, ...] = SCREENING) -> tuple[Arm, ...]:
    return (
        # The one change that is looked at as closely as the plan itself.
        _change(axis, "when", "at 10%", grows_at=0.1, shares=SHARES),
        _change(axis, "when", "at 50%", grows_at=0.5, seeds=seeds),
        _change(axis, "when", "at 80%", grows_at=0.8, seeds=SCREENING),
        _change(axis, "state", "reset", "phases.grown.optimizer_state=reset", seeds=seeds),
        _change(axis, "schedule", "cosine per phase", "schedule=cosine"),
    )


def _copies(name: str, *overrides: str, seeds: tuple[int, ...] = SCREENING, **settings: Any) -> Arm:
    overrides = tuple(f"phases.grown.grow.0.widen.{o}" for o in ("new_channels=copies", *overrides))
    return _change(
        "width x2", "new channels", f"copies, {name}", *overrides, seeds=seeds, **settings
    )


def _new_blocks(
    axis: str, init: str, placement: str = "stack", seeds: tuple[int, ...] = SEEDS
) -> Arm:
    settings = (f"init={init}", f"placement={placement}")
    overrides = (f"phases.grown.grow.0.deepen.{setting}" for setting in settings)
    return _change(axis, "new blocks", f"{init}, {placement}", *overrides, seeds=seeds)


AXES = (
    Axis(
        "width x2", "Width ×2", ("experiment=study_width",), True, "width x2",
        (
            *_recipe("width x2", SEEDS),
            _change(
                "width x2", "state", "asymmetric", "phases.grown.optimizer_state=asymmetric",
                seeds=SCREENING,
            ),
            _copies("noise 1e-2", "noise_std=1e-2", seeds=SEEDS, own_rate=True),
            _copies("noise 1e-5", "noise_std=1e-5"),
            _copies("no noise", "noise_std=0"),
            _copies("noise 10 dB below", "noise_snr_db=10", seeds=SEEDS),
            _copies("split 1:2, no noise", "noise_std=0", "split='1:2'"),
        ),
    ),
    Axis(
        "depth x2", "Depth ×2", ("experiment=study_depth",), True, "depth x2",
        (
            *_recipe("depth x2"),
            _new_blocks("depth x2", "identity"),
            _new_blocks("depth x2", "copy"),
        ),
    ),
    Axis(
        "experts", "Dense to 8 experts", ("experiment=study_moe",), True, "depth x2",
        (
            *_recipe("experts"),
            _change(
                "experts", "experts", "half of the units redrawn",
                "phases.grown.grow.0.upcycle.drop_fraction=0.5",
            ),
        ),
    ),
    Axis(
        "path", "Four stages", ("experiment=study_path",), True, "width x2",
        (
            _new_blocks("path", "fresh", "append"),
            _new_blocks("path", "fresh", "interleave"),
            _new_blocks("path", "identity", seeds=SCREENING),
            _new_blocks("path", "copy", seeds=SCREENING),
        ),
    ),
    Axis(
        "width x1.5", "Width ×1.5", ("experiment=study_width", "growth.scale_factor=1.5"), False,
        "width x2",
    ),
    Axis(
        "depth x4", "Depth ×4", ("experiment=study_depth", "growth.extra_layers=3"), False,
        "depth x2",
    ),
)  # fmt: skip


def axis_named(name: str) -> Axis:
    """By its name."""
    return next(axis for axis in AXES if axis.name == name)


def arm_named(key: str) -> Arm | None:
    """By its key; None if there is none."""
    return next((arm for axis in AXES for arm in axis.arms if arm.key == key), None)
