"""Rules: which tensors of ours are which of theirs, by name. One table of them serves both directions.

A name is a template: `{layer}` is a block's number, `{kind}` is `weight` or `bias`, `{expert}` an expert's number,
`{name}` anything. Rules are applied to the parameters that our model has, so that a rule for a bias does nothing
in a model without biases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from growlm.huggingface.tensor_mapping import (
    AbsentMapping,
    FusedMapping,
    IdentityMapping,
    Shape,
    StackedMapping,
    TensorMapping,
)
from growlm.model.config import ModelConfig

_PLACEHOLDERS = {"layer": r"\d+", "kind": "weight|bias", "name": ".+"}


@dataclass(frozen=True)
class MappingRule:
    """Templates of some of our names, the template of theirs, and how the tensors are related."""

    growlm_names: tuple[str, ...]
    hf_name: str
    mapping: TensorMapping


def identity_rule(growlm_name: str, hf_name: str) -> MappingRule:
    """Another name, nothing else."""
    return MappingRule((growlm_name,), hf_name, IdentityMapping())


def stacked_rule(growlm_name: str, hf_name: str) -> MappingRule:
    """Our stack of experts; theirs by `{expert}`."""
    return MappingRule((growlm_name,), hf_name, StackedMapping())


def fused_rule(
    growlm_names: Sequence[str], hf_name: str, *, dim: int, groups_field: str | None = None
) -> MappingRule:
    """Several of ours in one of theirs; see `Fused`."""
    return MappingRule(
        tuple(growlm_names), hf_name, FusedMapping(len(growlm_names), dim, groups_field)
    )


def absent_rule(growlm_name: str, *shape_fields: str) -> MappingRule:
    """They have no such tensor; see `Absent`."""
    return MappingRule((growlm_name,), "", AbsentMapping(shape_fields))


@dataclass(frozen=True)
class ResolvedRule:
    """A rule with the names of one model filled in."""

    growlm_names: tuple[str, ...]
    hf_names: tuple[str, ...]
    hf_shapes: tuple[Shape, ...]
    mapping: TensorMapping


def resolve_rules(
    rules: Sequence[MappingRule], config: ModelConfig, shapes: Mapping[str, Shape]
) -> tuple[ResolvedRule, ...]:
    """The links of a model, in the order of its parameters.

    Args:
        rules: The first one that fits a name holds.
        config: The model.
        shapes: Of all its parameters and buffers, by our names.
    """
    made: list[ResolvedRule] = []
    done: set[str] = set()
    for name in shapes:
        if name in done:
            continue
        rule, values = _find_rule(rules, name)
        ours = tuple(template.format(**values) for template in rule.growlm_names)
        their_shapes = tuple(rule.mapping.hf_shapes(config, [shapes[each] for each in ours]))
        theirs = tuple(rule.hf_name.format(**values, expert=n) for n in range(len(their_shapes)))
        made.append(ResolvedRule(ours, theirs, their_shapes, rule.mapping))
        done.update(ours)
    return tuple(made)


def get_hf_name(rules: Sequence[MappingRule], name: str) -> str:
    """What one of our tensors, which has one name there, is called there."""
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
