"""Define what the study compares: axes, and their arms as overrides of growlm.train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

RATE_GRID = (4e-3, 8e-3)
"""Learning rates that every tuned arm tries first. From the better one it goes on by factors of 2 until the loss
rises."""
SHARES = (0.65, 0.8, 1.0)
"""Shares of the budget that grown models train for, each with its own decay, to see when they reach a loss.
Growth after half of the budget comes before the decay of the shortest run."""
PLANNED_GROWTH = 0.25
"""Share of the budget before the (first) growth in the plans of conf/experiment."""
TUNING_SEED = 0
"""Seed that is used only to tune rates, because the best of several runs would be biased if reported."""
SEEDS = (1, 2, 3)
SCREENING_SEEDS = SEEDS[:1]
"""Seed of the arms that run only once; their figures have no spread."""


@dataclass(frozen=True)
class Arm:
    """Runs that differ only in their seed, their learning rate and their length.

    Args:
        axis: Name of the axis that it belongs to.
        name: `grown`, `scratch` or `continue`, or the name of a change to `grown`.
        factor: Factor of the recipe that the change varies; empty for `grown`, `scratch` and `continue`.
        overrides: Overrides of growlm.train.
        seeds: Seeds that it runs with.
        shares: Shares of the budget that it trains for.
        grows_at: Share of the budget before the growth, instead of the plan's.
        own_rate: Whether a change tunes its own learning rate, as arms that train for several lengths do.
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
        """Share of the budget before the growth."""
        return PLANNED_GROWTH if self.grows_at is None else self.grows_at

    @property
    def key(self) -> str:
        """Name on the command line and in the records."""
        return f"{self.axis}/{self.name}"

    @property
    def is_grown(self) -> bool:
        """Whether it trains for several lengths, so that it can be compared with the baselines at equal loss."""
        return self.baseline == "none" and len(self.shares) > 1

    @property
    def is_tuned(self) -> bool:
        """Whether its learning rate is tuned; a change to `grown` has the rate of `grown`."""
        return not self.factor or self.is_grown or self.own_rate

    @property
    def baseline(self) -> str:
        """Value of the setting `baseline`."""
        return self.name if self.name in ("scratch", "continue") else "none"


@dataclass(frozen=True)
class Axis:
    """A way to grow: a plan and its arms."""

    name: str
    title: str
    overrides: tuple[str, ...]
    is_headline: bool
    """Whether its three main arms run with three seeds."""
    source: str
    """Name of the axis whose `continue` arm this axis shares; the first model and the budget are the same."""
    changes: tuple[Arm, ...] = ()

    def main_arm(self, name: str) -> Arm:
        """Return the arm `continue`, `scratch` or `grown`."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def grown_arms(self) -> list[Arm]:
        """Arms that are compared with the baselines at equal loss."""
        return [arm for arm in self.arms if arm.is_grown]

    @property
    def arms(self) -> list[Arm]:
        """All arms: the three main ones and the changes."""
        seeds = SEEDS if self.is_headline else SCREENING_SEEDS
        main = [
            Arm(self.source, "continue", seeds=seeds),
            Arm(self.name, "scratch", seeds=seeds, shares=(0.5, 1.0)),
            Arm(self.name, "grown", seeds=seeds, shares=SHARES),
        ]
        return [*main, *self.changes]


def _change(axis: str, factor: str, name: str, *overrides: str, **settings: Any) -> Arm:
    return Arm(axis, name, factor, overrides, **settings)


def _recipe(axis: str, seeds: tuple[int, ...] = SCREENING_SEEDS) -> tuple[Arm, ...]:
    return (
        # The one change that trains for as many lengths as the plan itself.
        _change(axis, "when", "at 10%", grows_at=0.1, shares=SHARES),
        _change(axis, "when", "at 50%", grows_at=0.5, seeds=seeds),
        _change(axis, "when", "at 80%", grows_at=0.8, seeds=SCREENING_SEEDS),
        _change(axis, "state", "reset", "phases.grown.optimizer_state=reset", seeds=seeds),
        _change(axis, "schedule", "cosine per phase", "schedule=cosine"),
    )


def _copies(
    name: str, *overrides: str, seeds: tuple[int, ...] = SCREENING_SEEDS, **settings: Any
) -> Arm:
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
                seeds=SCREENING_SEEDS,
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
            _new_blocks("path", "identity", seeds=SCREENING_SEEDS),
            _new_blocks("path", "copy", seeds=SCREENING_SEEDS),
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


def get_axis(name: str) -> Axis:
    """Return the axis with this name."""
    return next(axis for axis in AXES if axis.name == name)


def find_arm(key: str) -> Arm | None:
    """Return the arm with this key, or None if there is none."""
    return next((arm for axis in AXES for arm in axis.arms if arm.key == key), None)
