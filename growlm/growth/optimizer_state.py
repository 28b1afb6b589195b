"""The optimizer's state through a growth.

| mode         | what the grown model's optimizer starts with                                              |
|--------------|-------------------------------------------------------------------------------------------|
| `reset`      | nothing                                                                                   |
| `carry`      | every moment through its weight's map; tensors that are new as a whole start at step 0    |
| `exact`      | as `carry`; the steps are scaled so that the grown model trains as the old one would have |
| `asymmetric` | as `carry` for the original block of each tensor; nothing for the new block, whose rate is |
|              | warmed up anew                                                                            |

How `exact` and `asymmetric` scale the steps: `growlm/training/step_scaling.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from torch import Tensor

from growlm.growth.engine import GrowthMap, TensorMap
from growlm.growth.factors import as_originals, no_factors, original_entries
from growlm.growth.noise import Noise
from growlm.growth.pieces import Fill
from growlm.growth.upcycle_pieces import Redraw

MODES = ("carry", "reset", "exact", "asymmetric")
MOMENT_POWERS = {"exp_avg": 1, "exp_avg_sq": 2, "momentum_buffer": 1, "variance": 2}
"""The power of the gradient that each entry of an optimizer's state is a running mean of."""
FACTORED = ("row_var", "col_var")
"""Adafactor's second moment: its means over columns and over rows."""

State = dict[str, Tensor]


def grow_moments(growth_map: GrowthMap, states: dict[str, State], mode: str) -> dict[str, State]:
    """The grown model's optimizer state.

    Args:
        growth_map: The growth.
        states: By old parameter name; emptied on the way, each state dropped once its last target is made, so that
            old and new moments never exist all at once.
        mode: One of `MODES`.

    Returns:
        By new parameter name. A parameter that starts afresh is absent.

    Raises:
        ValueError: If the mode is unknown, or a state has an entry that is not known how to grow.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode}: must be one of {', '.join(MODES)}")
    if mode == "reset":
        states.clear()
        return {}
    targets_left = Counter(t.source for t in growth_map.tensors.values() if not t.forgets)
    for name in [name for name in states if name not in targets_left]:
        del states[name]
    grown: dict[str, State] = {}
    for name, tensor_map in growth_map.tensors.items():
        source = tensor_map.source
        if tensor_map.forgets or source is None or source not in states:
            continue
        try:
            grown[name] = grow_state(tensor_map, states[source])
        except ValueError as error:
            raise ValueError(f"{error} of {source}") from error
        if mode == "asymmetric":
            _empty_new_block(tensor_map, growth_map.old_shapes[source], grown[name])
        targets_left[source] -= 1
        if not targets_left[source]:
            del states[source]
    return grown


def grow_state(tensor_map: TensorMap, state: State) -> State:
    """One parameter's state, as `carry` has it.

    Raises:
        ValueError: If it has an entry that is not known how to grow.
    """
    grown: State = {}
    for entry, value in state.items():
        if entry == "step":
            grown[entry] = value.clone()
        elif entry in MOMENT_POWERS:
            grown[entry] = tensor_map.moment(value, MOMENT_POWERS[entry])
        elif entry not in FACTORED:
            raise ValueError(f"no rule for the optimizer's state {entry!r}")
    if "row_var" in state:
        whole = state["row_var"] @ state["col_var"]
        whole /= state["row_var"].mean(dim=-2, keepdim=True).clamp(min=1e-30)
        grown["variance"] = tensor_map.moment(whole, 2)
    if "variance" in grown and grown["variance"].ndim > 1:
        # Adafactor's estimate from row and column means is of rank one, and so is what it grows to.
        variance = grown.pop("variance")
        grown["row_var"] = variance.mean(dim=-1, keepdim=True)
        grown["col_var"] = variance.mean(dim=-2, keepdim=True)
    return grown


def state_shapes(entries: Collection[str], shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """What a parameter's state consists of, with shapes.

    Args:
        entries: Of a state of the same optimizer, for a parameter that may have fewer dimensions.
        shape: The parameter's.
    """
    factored = ("row_var", (*shape[:-1], 1)), ("col_var", (*shape[:-2], 1, *shape[-1:]))
    found: dict[str, tuple[int, ...]] = {}
    for entry in entries:
        if entry in (*FACTORED, "variance"):
            found |= dict(factored) if len(shape) > 1 else {"variance": shape}
        else:
            found[entry] = () if entry == "step" else shape
    return found


def _empty_new_block(tensor_map: TensorMap, old_shape: tuple[int, ...], state: State) -> None:
    factors = tensor_map.factors(as_originals(no_factors(old_shape)))
    if all(bool(factor.original.all()) for factor in factors):
        return
    for entry in MOMENT_POWERS.keys() & state.keys():
        state[entry] *= original_entries(factors, state[entry])


def inexact_because(growth_map: GrowthMap) -> list[str]:
    """Why the grown model cannot train exactly as the old one would have, in words; empty if it can.

    Upcycling and deepening are not looked at: what they add has no past to be exact about.
    """
    reasons = []
    pieces = [piece for t in growth_map.tensors.values() for piece in t.pieces]
    if any(isinstance(piece, Noise | Redraw) for piece in pieces):
        reasons.append("noise makes copies differ")
    residual, experts = (growth_map.axes.get(axis) for axis in ("residual", "experts"))
    if residual is not None and not residual.is_even:
        reasons.append("columns that read the residual stream are split unevenly")
    if experts is not None and growth_map.old_config.router_z_weight:
        reasons.append("the router's z-loss sees more experts")
    fills = {piece.kind for piece in pieces if isinstance(piece, Fill)}
    if growth_map.old_config.norm == "layernorm" and fills:
        reasons.append("filler channels of LayerNorm learn apart from the mean they hold")
    elif "random" in fills:
        reasons.append("random columns read the filler channels")
    if not growth_map.lossless:
        reasons.append("the growth is not lossless")
    return reasons


def moment_entries(state: State) -> list[tuple[Tensor, int]]:
    """The moments of a state that are as large as the parameter, with the power of each."""
    return [
        (value, MOMENT_POWERS[entry]) for entry, value in state.items() if entry in MOMENT_POWERS
    ]


def bias_correction(beta: float, steps: float) -> float:
    """1 − beta**steps: what a running mean that began at zero has seen (Kingma and Ba 2014, section 3)."""
    return 1.0 - beta**steps
