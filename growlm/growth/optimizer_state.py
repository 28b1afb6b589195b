"""The optimizer's moments through a growth.

| mode    | what the grown model's optimizer starts with                                                   |
|---------|------------------------------------------------------------------------------------------------|
| `reset` | nothing                                                                                        |
| `carry` | every moment through the same map as its weight; tensors that are new as a whole start at step 0 |
"""

from __future__ import annotations

from collections import Counter

from torch import Tensor

from growlm.growth.engine import GrowthMap

MODES = ("reset", "carry")
MOMENT_POWERS = {"exp_avg": 1, "exp_avg_sq": 2}
"""The power of the gradient that each entry of the optimizer's state is a running mean of."""

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
        state: State = {}
        for entry, value in states[source].items():
            if entry == "step":
                state[entry] = value.clone()
            elif entry in MOMENT_POWERS:
                state[entry] = tensor_map.moment(value, MOMENT_POWERS[entry])
            else:
                raise ValueError(f"no rule for the optimizer state {entry!r} of {source}")
        grown[name] = state
        targets_left[source] -= 1
        if not targets_left[source]:
            del states[source]
    return grown
