"""Define rules that match growlm tensor names to Hugging Face names; one table serves both directions.

Names are templates: `{layer}` is a block's index, `{kind}` is `weight` or `bias`, `{expert}` is an expert's index,
`{name}` is any text. Rules are applied to the parameters that the growlm model has, so a rule for a bias has no
effect in a model without biases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from growlm.huggingface.tensor_mapping import (
    AbsentMapping,
    ConcatenatedMapping,
    FusedMapping,
    IdentityMapping,
    Shape,
    StackedMapping,
    TensorMapping,
    TransposedMapping,
    ZeroMapping,
)
from growlm.model.config import ModelConfig, get_field

_PLACEHOLDERS = {"layer": r"\d+", "kind": "weight|bias", "name": ".+"}


@dataclass(frozen=True)
class MappingRule:
    """Templates of growlm names, the template of the Hugging Face name, and the mapping between the tensors.

    A rule with a condition, a field of the config and its value, applies only to models that fulfill it.
    """

    growlm_names: tuple[str, ...]
    hf_name: str
    mapping: TensorMapping
    condition: tuple[str, Any] | None = None

    def applies_to(self, config: ModelConfig) -> bool:
        """Return whether a model fulfills the rule's condition."""
        return self.condition is None or get_field(config, self.condition[0]) == self.condition[1]


def identity_rule(growlm_name: str, hf_name: str) -> MappingRule:
    """Return a rule for a tensor that only changes its name."""
    return MappingRule((growlm_name,), hf_name, IdentityMapping())


def stacked_rule(growlm_name: str, hf_name: str) -> MappingRule:
    """Return a rule for stacked experts in growlm that are separate tensors, by `{expert}`, in Hugging Face."""
    return MappingRule((growlm_name,), hf_name, StackedMapping())


def rule_if(condition: tuple[str, Any], rule: MappingRule) -> MappingRule:
    """Return the rule for models whose config has the value of the given field."""
    return replace(rule, condition=condition)


def fused_rule(
    growlm_names: Sequence[str],
    hf_name: str,
    *,
    dim: int,
    groups_field: str | None = None,
    groups: int = 1,
) -> MappingRule:
    """Return a rule for several growlm tensors that are one tensor in Hugging Face; see `FusedMapping`."""
    mapping = FusedMapping(len(growlm_names), dim, groups_field, groups)
    return MappingRule(tuple(growlm_names), hf_name, mapping)


def concatenated_rule(
    growlm_rows: Mapping[str, str], hf_name: str, *, groups_field: str | None = None
) -> MappingRule:
    """Return a rule for several growlm tensors whose rows are one Hugging Face tensor.

    Args:
        growlm_rows: Growlm name of each, with the axis of its rows.
        hf_name: Hugging Face name.
        groups_field: See `ConcatenatedMapping`.
    """
    mapping = ConcatenatedMapping(tuple(growlm_rows.values()), groups_field)
    return MappingRule(tuple(growlm_rows), hf_name, mapping)


def transposed_rule(rule: MappingRule) -> MappingRule:
    """Return the rule for a Hugging Face tensor that is transposed, too."""
    return replace(rule, mapping=TransposedMapping(rule.mapping))


def zero_rule(hf_name: str, *sizes: int | str) -> MappingRule:
    """Return a rule for a Hugging Face tensor of each block that growlm does not have; see `ZeroMapping`."""
    return MappingRule((), hf_name, ZeroMapping(sizes))


def absent_rule(growlm_name: str, *shape_fields: str) -> MappingRule:
    """Return a rule for a growlm tensor, zero, that Hugging Face does not have; see `AbsentMapping`."""
    return MappingRule((growlm_name,), "", AbsentMapping(shape_fields))


def unit_gain_rule(growlm_name: str) -> MappingRule:
    """Return a rule for the gains of a norm that has none in Hugging Face: they are one."""
    return MappingRule((growlm_name,), "", AbsentMapping(("d_model",), value=1.0, is_weight=True))


@dataclass(frozen=True)
class ResolvedRule:
    """A rule with its templates filled in for one or several tensors of a model."""

    growlm_names: tuple[str, ...]
    hf_names: tuple[str, ...]
    hf_shapes: tuple[Shape, ...]
    mapping: TensorMapping


def resolve_rules(
    rules: Sequence[MappingRule], config: ModelConfig, shapes: Mapping[str, Shape]
) -> tuple[ResolvedRule, ...]:
    """Resolve the rules for a model's tensors, in the order of its parameters.

    Args:
        rules: Mapping rules; the first that matches a name applies.
        config: Config of the model.
        shapes: Shapes of all its parameters and buffers, by growlm name.
    """
    rules = [rule for rule in rules if rule.applies_to(config)]
    resolved: list[ResolvedRule] = []
    done: set[str] = set()
    for name in shapes:
        if name in done:
            continue
        rule, values = _find_rule(rules, name)
        growlm_names = tuple(template.format(**values) for template in rule.growlm_names)
        growlm_shapes = [shapes[growlm_name] for growlm_name in growlm_names]
        hf_shapes = tuple(rule.mapping.hf_shapes(config, growlm_shapes))
        hf_names = tuple(rule.hf_name.format(**values, expert=n) for n in range(len(hf_shapes)))
        resolved.append(ResolvedRule(growlm_names, hf_names, hf_shapes, rule.mapping))
        done.update(growlm_names)
    for rule in rules:
        if not rule.growlm_names:
            blocks = config.mixtures if config.is_moe else range(config.n_layers)
            hf_names = tuple(rule.hf_name.format(layer=block) for block in blocks)
            hf_shapes = tuple(rule.mapping.hf_shapes(config, [])) * len(blocks)
            resolved.append(ResolvedRule((), hf_names, hf_shapes, rule.mapping))
    return tuple(resolved)


def get_hf_name(rules: Sequence[MappingRule], name: str) -> str:
    """Return the Hugging Face name of a growlm tensor that maps to a single tensor."""
    rule, values = _find_rule(rules, name)
    return rule.hf_name.format(**values)


def _find_rule(rules: Sequence[MappingRule], name: str) -> tuple[MappingRule, dict[str, str]]:
    for rule in rules:
        for template in rule.growlm_names:
            if match := _compile_template(template).fullmatch(name):
                return rule, match.groupdict()
    raise LookupError(f"no rule for {name}")


@cache
def _compile_template(template: str) -> re.Pattern[str]:
    pattern = re.escape(template)
    for placeholder, values in _PLACEHOLDERS.items():
        pattern = pattern.replace(re.escape(f"{{{placeholder}}}"), f"(?P<{placeholder}>{values})")
    return re.compile(pattern)
