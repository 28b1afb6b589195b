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

from growlm.huggingface.tensor_mapping import Absent, Form, Fused, Same, Shape, Stacked
from growlm.model.config import ModelConfig

_PLACEHOLDERS = {"layer": r"\d+", "kind": "weight|bias", "name": ".+"}


@dataclass(frozen=True)
class Rule:
    """Templates of some of our names, the template of theirs, and how the tensors are related."""

    ours: tuple[str, ...]
    theirs: str
    form: Form


def same(ours: str, theirs: str) -> Rule:
    """Another name, nothing else."""
    return Rule((ours,), theirs, Same())


def stacked(ours: str, theirs: str) -> Rule:
    """Our stack of experts; theirs by `{expert}`."""
    return Rule((ours,), theirs, Stacked())


def fused(ours: Sequence[str], theirs: str, *, dim: int, groups: str | None = None) -> Rule:
    """Several of ours in one of theirs; see `Fused`."""
    return Rule(tuple(ours), theirs, Fused(len(ours), dim, groups))


def absent(ours: str, *shape: str) -> Rule:
    """They have no such tensor; see `Absent`."""
    return Rule((ours,), "", Absent(shape))


@dataclass(frozen=True)
class Link:
    """A rule with the names of one model filled in."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    their_shapes: tuple[Shape, ...]
    form: Form


def links(
    rules: Sequence[Rule], config: ModelConfig, shapes: Mapping[str, Shape]
) -> tuple[Link, ...]:
    """The links of a model, in the order of its parameters.

    Args:
        rules: The first one that fits a name holds.
        config: The model.
        shapes: Of all its parameters and buffers, by our names.
    """
    made: list[Link] = []
    done: set[str] = set()
    for name in shapes:
        if name in done:
            continue
        rule, values = _rule_for(rules, name)
        ours = tuple(template.format(**values) for template in rule.ours)
        their_shapes = tuple(rule.form.their_shapes(config, [shapes[each] for each in ours]))
        theirs = tuple(rule.theirs.format(**values, expert=n) for n in range(len(their_shapes)))
        made.append(Link(ours, theirs, their_shapes, rule.form))
        done.update(ours)
    return tuple(made)


def their_name(rules: Sequence[Rule], name: str) -> str:
    """What one of our tensors, which has one name there, is called there."""
    rule, values = _rule_for(rules, name)
    return rule.theirs.format(**values)


def _rule_for(rules: Sequence[Rule], name: str) -> tuple[Rule, dict[str, str]]:
    for rule in rules:
        for template in rule.ours:
            if match := _pattern(template).fullmatch(name):
                return rule, match.groupdict()
    raise LookupError(f"no rule for {name}")


@cache
def _pattern(template: str) -> re.Pattern[str]:
    pattern = re.escape(template)
    for placeholder, values in _PLACEHOLDERS.items():
        pattern = pattern.replace(re.escape(f"{{{placeholder}}}"), f"(?P<{placeholder}>{values})")
    return re.compile(pattern)
