"""Grow the optimizers of a transformers model by the same mappings as its weights.

A mapping only rearranges entries, so it holds for running means of gradients as it does for weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from growlm.growth.growth_map import GrowthMap
from growlm.growth.optimizer_growth import (
    Place,
    assign_places,
    copy_for_parameters,
    find_places,
    get_states,
)
from growlm.growth.optimizer_state import MOMENT_POWERS, ParameterState
from growlm.huggingface.live.live_model import LiveModel
from growlm.huggingface.mapping_rules import ResolvedRule
from growlm.runtime.errors import UserError

MODES = ("carry", "reset")


def check_states(optimizers: Sequence[Optimizer], live: LiveModel, mode: str) -> None:
    """Check that optimizers can grow with a transformers model, before the model does.

    Raises:
        UserError: If the mode scales steps, or a state is not made of moments as large as the parameters.
    """
    if mode not in MODES and optimizers:
        reason = f"is not for transformers models; use {' or '.join(MODES)}"
        raise UserError("optimizer_state", mode, reason)
    for optimizer in optimizers if mode == "carry" else ():
        for name, state in get_states(optimizer, live.model).items():
            shape = live.model.get_parameter(name).shape
            other = [
                entry
                for entry, value in state.items()
                if entry != "step"
                and (
                    entry not in MOMENT_POWERS or type(value) is not Tensor or value.shape != shape
                )
            ]
            if other:
                reason = (
                    f"its state {other[0]!r} of {name} is not a moment of the parameter's shape, which a "
                    "transformers model's growth needs; set optimizer_state=reset"
                )
                raise UserError("optimizer", type(optimizer).__name__, reason)


def grow_live_optimizers(
    optimizers: Sequence[Optimizer],
    live: LiveModel,
    grown: PreTrainedModel,
    rules: Sequence[ResolvedRule],
    growth_map: GrowthMap,
    labeled: nn.Module,
    mode: str,
) -> list[Optimizer]:
    """Return optimizers for the grown model; the old ones are left as they are.

    Args:
        optimizers: Optimizers of the old model, which `check_states` has accepted.
        live: Model before the growth.
        grown: Model after it.
        rules: Rules of the grown model's tensors.
        growth_map: Growth, under growlm's names.
        labeled: The grown model under growlm's names, on the meta device.
        mode: `carry` or `reset`.
    """
    if not optimizers:
        return []
    places = _assign_live_places(optimizers, live, rules, growth_map, labeled)
    parameters = dict(grown.named_parameters())
    new_optimizers = []
    for number, optimizer in enumerate(optimizers):
        members = [n for n in parameters if n in places and places[n].optimizer == number]
        new = copy_for_parameters(optimizer, members, parameters, places)
        if mode == "carry":
            states = _GrownMoments(optimizer, live, growth_map, rules)
            convert = getattr(new, "convert_state", dict)
            for name in members:
                if state := states.make(name):
                    new.state[parameters[name]] = convert(state)
        new_optimizers.append(new)
    return new_optimizers


def _assign_live_places(
    optimizers: Sequence[Optimizer],
    live: LiveModel,
    rules: Sequence[ResolvedRule],
    growth_map: GrowthMap,
    labeled: nn.Module,
) -> dict[str, Place]:
    """Return the place of each new parameter that is stepped: its source's, or that of its neighbors' sources."""
    old = find_places(optimizers, live.model)
    by_own_name = {
        name: old[source]
        for name in live.tensors.names
        for source in live.tensors.sources(name)[:1]
        if source in old
    }
    new = assign_places(labeled, growth_map, by_own_name)
    return {
        hf_name: new[name]
        for rule in rules
        for name in rule.growlm_names[:1]
        for hf_name in rule.hf_names
        if name in new
    }


class _GrownMoments:
    """States of the grown model's parameters in one optimizer, each computed when it is asked for.

    Args:
        optimizer: Optimizer of the old model.
        live: Model before the growth.
        growth_map: Growth, under growlm's names.
        rules: Rules of the grown model's tensors.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        live: LiveModel,
        growth_map: GrowthMap,
        rules: Sequence[ResolvedRule],
    ) -> None:
        self._states = get_states(optimizer, live.model)
        self._live, self._growth_map = live, growth_map
        self._rules = {
            name: (rule, index) for rule in rules for index, name in enumerate(rule.hf_names)
        }

    def make(self, hf_name: str) -> ParameterState:
        """Return the state that a parameter starts with; empty if a part of it starts without one."""
        rule, index = self._rules[hf_name]
        sources = [self._find_state(name) for name in rule.growlm_names]
        if not sources or not all(sources):
            return {}
        made: ParameterState = {}
        with torch.no_grad():
            for entry, value in sources[0].items():
                if entry == "step":
                    made[entry] = value.clone() if isinstance(value, Tensor) else value
                    continue
                parts = [partial(self._grow, name, entry) for name in rule.growlm_names]
                config = self._growth_map.new_config
                made[entry] = rule.mapping.make_hf_tensor(config, parts, index).contiguous()
        return made

    def _find_state(self, name: str) -> ParameterState:
        """Return the state that a new tensor of growlm's is made from; empty if it starts without one."""
        tensor_map = self._growth_map.tensors[name]
        if tensor_map.source is None or tensor_map.resets_moments:
            return {}
        states = [
            self._states.get(each, {}) for each in self._live.tensors.sources(tensor_map.source)
        ]
        return states[0] if states and all(states) else {}

    def _grow(self, name: str, entry: str) -> Tensor:
        """Return one moment of a new tensor of growlm's."""
        tensor_map = self._growth_map.tensors[name]
        assert tensor_map.source is not None
        moment = self._live.tensors.make(tensor_map.source, lambda each: self._states[each][entry])
        return tensor_map.grow_moment(moment, MOMENT_POWERS[entry])
