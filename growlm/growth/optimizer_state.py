"""Grow the optimizer's state along with the model.

| mode         | what the grown model's optimizer starts with                                              |
|--------------|-------------------------------------------------------------------------------------------|
| `reset`      | nothing                                                                                   |
| `carry`      | every moment, grown as its weight is; entirely new tensors start at step 0                |
| `exact`      | as `carry`; the steps are scaled so that the grown model trains as the old one would have |
| `asymmetric` | as `carry` for the original entries of each tensor; nothing for the new entries, whose    |
|              | learning rate is warmed up again                                                          |

`growlm/growth/step_scaling.py` implements the step scaling of `exact` and `asymmetric`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from growlm.distributed.dtensors import is_sharded
from growlm.distributed.sharded_tasks import ShardedTask, map_sharded
from growlm.growth.eight_bit_moments import (
    count_scales,
    dequantize,
    is_quantizable,
    quantize,
    quantize_into,
    scale_key,
)
from growlm.growth.growth_map import GrowthMap, TensorMap
from growlm.growth.transforms.scale_factors import (
    ScaleFactors,
    mark_all_original,
    original_mask,
    unit_factors,
)

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

OPTIMIZER_STATE_MODES = ("carry", "reset", "exact", "asymmetric")
MOMENT_POWERS = {
    "exp_avg": 1,
    "exp_avg_sq": 2,
    "max_exp_avg_sq": 2,  # AMSGrad's: the largest exp_avg_sq so far
    "momentum_buffer": 1,
    "variance": 2,
}
"""For each entry of an optimizer's state, the power of the gradient of which it is a running mean."""
FACTORED_ENTRIES = ("row_var", "col_var")
"""Adafactor's second moment: its means over columns and over rows."""

MOMENT_OF_SCALE_KEY = {scale_key(entry): entry for entry in MOMENT_POWERS}
"""The moment to which each name of scales belongs (`growlm/growth/eight_bit_moments.py`)."""

ParameterState = dict[str, Tensor]


def register_moment(entry: str, power: int) -> None:
    """Say what an entry of an optimizer's state is, so that it can grow.

    Args:
        entry: Name of the entry; its tensors have the parameters' shapes.
        power: Power of the gradient of which it is a running mean (or sum): 1 or 2.

    Raises:
        ValueError: If the power is another number, or the entry is known with another power.
    """
    if power not in (1, 2) or MOMENT_POWERS.get(entry, power) != power:
        known = MOMENT_POWERS.get(entry, "1 or 2")
        raise ValueError(f"power={power}: must be {known} for {entry!r}")
    MOMENT_POWERS[entry] = power


def grow_optimizer_state(
    growth_map: GrowthMap, states: dict[str, ParameterState], mode: str
) -> dict[str, ParameterState]:
    """Return the grown model's optimizer state.

    Args:
        growth_map: Map of the growth.
        states: States by old parameter name. The dictionary is emptied: each state is dropped once its last
            target is made, so that old and new moments never exist all at once. Sharded states grow to
            sharded ones.
        mode: One of `OPTIMIZER_STATE_MODES`.

    Returns:
        States by new parameter name. Parameters that start at step 0 are absent.

    Raises:
        ValueError: If the mode is unknown, or there is no rule for growing an entry of a state.
    """
    if mode not in OPTIMIZER_STATE_MODES:
        raise ValueError(f"mode={mode}: must be one of {', '.join(OPTIMIZER_STATE_MODES)}")
    if mode == "reset":
        states.clear()
        return {}
    targets_left = Counter(t.source for t in growth_map.tensors.values() if not t.resets_moments)
    for name in [name for name in states if name not in targets_left]:
        del states[name]
    wanted = {
        name: tensor_map
        for name, tensor_map in growth_map.tensors.items()
        if not tensor_map.resets_moments and tensor_map.source in states
    }
    grown: dict[str, ParameterState] = {name: {} for name in wanted}
    mesh = _find_mesh(states)
    local_names = [name for name in wanted if mesh is None or wanted[name].keeps_moments]
    for name in local_names:
        source = _source_name(wanted[name])
        grown[name] = _grow_state_of(growth_map, name, states[source], mode)
        targets_left[source] -= 1
        if not targets_left[source]:
            del states[source]
    if mesh is not None:
        sharded_names = sorted(
            wanted.keys() - local_names, key=lambda name: (-math.prod(wanted[name].shape), name)
        )
        _grow_sharded_states(growth_map, sharded_names, states, grown, mode, mesh)
    return grown


def _grow_sharded_states(
    growth_map: GrowthMap,
    names: Sequence[str],
    states: dict[str, ParameterState],
    grown: dict[str, ParameterState],
    mode: str,
    mesh: DeviceMesh,
) -> None:
    """Grow the named parameters' sharded states into `grown`, moment by moment, and drop the old ones."""

    def make_task(key: tuple[str, str]) -> ShardedTask[tuple[str, str]]:
        name, entry = key
        tensor_map = growth_map.tensors[name]

        def grow_moment(moment: Tensor) -> Tensor:
            return _grow_state_of(growth_map, name, {entry: moment}, mode)[entry]

        moment = states[_source_name(tensor_map)][entry]
        return ShardedTask(key, moment, grow_moment, tensor_map.shape)

    sources = {name: _source_name(growth_map.tensors[name]) for name in names}
    keys = [(name, entry) for name in names for entry in states[sources[name]] if entry != "step"]
    if unknown := {entry for _, entry in keys if entry not in MOMENT_POWERS}:
        raise ValueError(
            f"no rule for the optimizer's state {', '.join(map(repr, sorted(unknown)))}"
        )
    targets_left = Counter((sources[name], entry) for name, entry in keys)
    for name in names:
        grown[name] |= {e: _copy_step(v) for e, v in states[sources[name]].items() if e == "step"}
    for (name, entry), moment in map_sharded(map(make_task, keys), mesh):
        grown[name][entry] = moment
        targets_left[sources[name], entry] -= 1
        if not targets_left[sources[name], entry]:
            del states[sources[name]][entry]
    for source in set(sources.values()):
        del states[source]


def _find_mesh(states: Mapping[str, ParameterState]) -> DeviceMesh | None:
    values = (value for state in states.values() for value in state.values())
    return next((value.device_mesh for value in values if is_sharded(value)), None)


def _source_name(tensor_map: TensorMap) -> str:
    assert tensor_map.source is not None
    return tensor_map.source


def _grow_state_of(
    growth_map: GrowthMap, name: str, state: ParameterState, mode: str
) -> ParameterState:
    """Return the state that a new parameter starts with, given its source's state or a part of it."""
    tensor_map = growth_map.tensors[name]
    source, original_factors = _source_name(tensor_map), None
    if mode == "asymmetric":
        original_factors = tensor_map.scale_factors(
            mark_all_original(unit_factors(growth_map.old_shapes[source]))
        )
    try:
        return grow_parameter_state(tensor_map, state, original_factors)
    except ValueError as error:
        raise ValueError(f"{error} of {source}") from error


def grow_parameter_state(
    tensor_map: TensorMap, state: ParameterState, original_factors: ScaleFactors | None = None
) -> ParameterState:
    """Return one parameter's grown state, as mode `carry` defines it.

    What is in 8 bits stays in 8 bits if the new shape consists of whole blocks.

    Args:
        tensor_map: Map of the parameter.
        state: State of its source.
        original_factors: Factors that mark the original entries; all others start without moments. None to
            carry all.

    Raises:
        ValueError: If there is no rule for growing an entry of the state.
    """
    if original_factors is not None and all(
        bool(factor.original.all()) for factor in original_factors
    ):
        original_factors = None
    grown: ParameterState = {}
    for entry, value in state.items():
        if entry == "step":
            grown[entry] = _copy_step(value)
        elif entry in MOMENT_POWERS:
            grown |= _grow_moment(tensor_map, state, entry, original_factors)
        elif entry not in FACTORED_ENTRIES and MOMENT_OF_SCALE_KEY.get(entry) not in state:
            if tensor_map.transforms or entry in MOMENT_OF_SCALE_KEY:
                raise ValueError(f"no rule for the optimizer's state {entry!r}")
            grown[entry] = value.clone()  # of an optimizer of the user's own
    if "row_var" in state:
        variance = state["row_var"] @ state["col_var"]
        variance /= state["row_var"].mean(dim=-2, keepdim=True).clamp(min=1e-30)
        grown["variance"] = tensor_map.grow_moment(variance, 2)
    if "variance" in grown and grown["variance"].ndim > 1:
        # Adafactor's estimate from row and column means has rank one, and so has the grown estimate.
        variance = grown.pop("variance")
        grown["row_var"] = variance.mean(dim=-1, keepdim=True)
        grown["col_var"] = variance.mean(dim=-2, keepdim=True)
    return grown


def _copy_step(step: Tensor) -> Tensor:
    return step.clone() if isinstance(step, Tensor) else step  # some optimizers count in Python


def _grow_moment(
    tensor_map: TensorMap, state: ParameterState, entry: str, original_factors: ScaleFactors | None
) -> ParameterState:
    if not tensor_map.transforms:  # quantizing again would round again
        return {part: state[part].clone() for part in (entry, scale_key(entry)) if part in state}
    grown = tensor_map.grow_moment(dequantize_moment(state, entry), MOMENT_POWERS[entry])
    if original_factors is not None:
        grown *= original_mask(original_factors, grown)
    return _store_moment(entry, grown, scale_key(entry) in state)


def dequantize_moment(state: Mapping[str, Tensor], entry: str) -> Tensor:
    """Return a moment as one plain tensor: the stored one, or a new one if it is stored in 8 bits."""
    if scale_key(entry) not in state:
        return state[entry]
    return dequantize(state[entry], state[scale_key(entry)], is_signed_moment(entry))


def is_signed_moment(entry: str) -> bool:
    """Return whether a moment may have negative entries."""
    return MOMENT_POWERS[entry] % 2 == 1


def _store_moment(entry: str, moment: Tensor, use_8bit: bool) -> ParameterState:
    if not use_8bit or not is_quantizable(moment.shape):
        return {entry: moment}
    return dict(
        zip((entry, scale_key(entry)), quantize(moment, is_signed_moment(entry)), strict=True)
    )


def convert_moments(state: ParameterState, use_8bit: bool) -> ParameterState:
    """Return the state with moments in 8 bits where possible, or all plain; unchanged moments are not copied."""
    changed: ParameterState = {}
    for entry, value in state.items():
        if entry in MOMENT_OF_SCALE_KEY:
            continue
        if entry not in MOMENT_POWERS:
            changed[entry] = value
        elif use_8bit and scale_key(entry) in state:
            changed |= {entry: value, scale_key(entry): state[scale_key(entry)]}
        else:
            changed |= _store_moment(entry, dequantize_moment(state, entry), use_8bit)
    return changed


def expected_state_shapes(
    entries: Collection[str], shape: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Return the entries of a parameter's state and their shapes.

    Args:
        entries: Entries of a state of the same optimizer, for a parameter that may have another shape.
        shape: Shape of the parameter.
    """
    factored = ("row_var", (*shape[:-1], 1)), ("col_var", (*shape[:-2], 1, *shape[-1:]))
    found: dict[str, tuple[int, ...]] = {}
    for entry in entries:
        if entry in (*FACTORED_ENTRIES, "variance"):
            found |= dict(factored) if len(shape) > 1 else {"variance": shape}
        elif entry not in MOMENT_OF_SCALE_KEY:
            found[entry] = () if entry == "step" else shape
            if scale_key(entry) in entries and is_quantizable(shape):
                found[scale_key(entry)] = (count_scales(shape),)
    return found


def explain_inexactness(growth_map: GrowthMap) -> list[str]:
    """Return the reasons why the grown model cannot train exactly as the old one would have; empty if it can.

    Upcycling and deepening are not considered: what they add has no earlier training to match.
    """
    reasons = []
    transforms = [transform for t in growth_map.tensors.values() for transform in t.transforms]
    if any(transform.makes_copies_differ for transform in transforms):
        reasons.append("noise makes copies differ")
    residual, experts = (growth_map.axes.get(axis) for axis in ("residual", "experts"))
    if residual is not None and not residual.has_equal_shares:
        reasons.append("columns that read the residual stream are split unevenly")
    if experts is not None and growth_map.old_config.routing.z_weight:
        reasons.append("the router's z-loss sees more experts")
    fills = {fill.kind for transform in transforms if (fill := transform.fill) is not None}
    if growth_map.old_config.norm.kind == "layernorm" and fills:
        reasons.append("filler channels of LayerNorm drift from the mean they hold")
    elif "random" in fills:
        reasons.append("random columns read the filler channels")
    if not growth_map.lossless:
        reasons.append("the growth is not lossless")
    return reasons


def update_moments(state: ParameterState, update: Callable[[Tensor, int], object]) -> None:
    """Apply a function in place to each moment as large as the parameter; 8-bit ones are quantized again.

    Args:
        state: State whose moments may be in 8 bits.
        update: Function that changes a plain moment in place; its second argument is the power of the
            gradient.
    """
    for entry, value in state.items():
        if entry in MOMENT_POWERS:
            moment = dequantize_moment(state, entry)
            update(moment, MOMENT_POWERS[entry])
            if moment is not value:
                quantize_into(value, state[scale_key(entry)], moment, is_signed_moment(entry))


def bias_correction(beta: float, steps: float) -> float:
    """Return 1 − beta**steps, Adam's bias correction (Kingma and Ba 2014, section 3)."""
    return 1.0 - beta**steps
