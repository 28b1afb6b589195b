"""The page on troubleshooting has messages that growlm prints, from every part of it."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from growlm.config import load_config
from growlm.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_]*\b")
"""Words in capitals stand for anything, also those that a message has itself, such as RANK."""
TABLE_ROW = re.compile(r"^\| `([^|]+)` \| [^|]+ \| [^|]+ \|$", re.M)
MESSAGES = TABLE_ROW.findall(PAGE)


@cache
def strings_of(path):
    """The texts in a module; where an f-string or a sum has something else, there is a line break."""

    def text(node):
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str) else "\n"
        if isinstance(node, ast.JoinedStr):
            return "".join(map(text, node.values))
        return "\n"

    nodes = ast.walk(ast.parse(path.read_text()))
    return "\n".join(text(n) for n in nodes if isinstance(n, (ast.Constant, ast.JoinedStr)))


def fragments(message):
    parts = [part.strip(" .,;:()") for part in PLACEHOLDER.split(message)]
    return [part for part in parts if len(part) > 5]


@cache
def modules_of(fragment):
    return {p for p in (ROOT / "growlm").rglob("*.py") if fragment in strings_of(p)}


@pytest.mark.parametrize("message", sorted(MESSAGES))
def test_growlm_prints_it(message):
    parts = fragments(message)
    assert parts, "nothing of it is fixed"
    assert all(modules_of(part) for part in parts), parts


def test_a_message_of_the_past_is_found():
    assert not modules_of("there is no such knob")


def test_each_family_has_messages():
    sections = re.split(r"^## ", PAGE, flags=re.M)[2:]
    families = {text.partition("\n")[0]: len(TABLE_ROW.findall(text)) for text in sections}
    assert len(families) == 15
    assert all(count >= 4 for count in families.values()), families
    assert sum(families.values()) == len(MESSAGES) > 220


def test_every_package_that_refuses_something_is_there():
    packages = {
        path.relative_to(ROOT).parts[1]
        for path in (ROOT / "growlm").glob("*/**/*.py")
        if "UserError(" in path.read_text()
    }
    covered = {
        path.relative_to(ROOT).parts[1]
        for message in MESSAGES
        for part in fragments(message)
        for path in modules_of(part)
    }
    assert packages - covered == set()


def test_every_check_has_a_section():
    checks = set(re.findall(r"^### `(\w+)`", PAGE, re.M))
    assert checks == {"rope", "router", "symmetry", "functional", "weights", "router_lock"}


REFUSED = (
    "model.d_modl=64",
    "optimizer=adamw8",
    "phases.foo.steps=3",
    "growth.noise_std=1e-3 phase_plan=dense",
    "trainer.devices=3",
    "phases.wide.batch_size=0",
    "name='a b'",
    "trainer.max_time=5h",
    "sequence_length=9999",
    "optimizer=muon phases.wide.optimizer_state=exact",
    "data=text",
    "tokenizer=huggingface",
    "resume=/nope",
    "phases.deep.steps=+500",
    "model.num_experts=8 model.top_k=1",
    "optimizer=adafactor trainer.devices=2 trainer.strategy=fsdp",
    "phases.moe.grow=[{upcycl: {}}]",
    "phases.moe.grow={upcycle: {}}",
    "phases.moe.grow=[{upcycle: {expert: 4}}]",
    "phases.dense.grow=[{upcycle: {num_experts: 4}}]",
    "phases.dense.optimizer_state=reset",
    "phases.deep.save_as=dense_model",
    "baseline=scratch baseline.equal=flopz",
)


def as_pattern(message):
    return ".*".join(map(re.escape, fragments(message)))


@pytest.mark.parametrize("overrides", REFUSED)
def test_a_refused_request_is_on_the_page(overrides):
    arguments = re.findall(r"(?:[^\s=]+)=(?:\[.*\]|\{.*\}|'[^']*'|\S+)", overrides)
    with pytest.raises((UserError, ValueError)) as caught:
        load_config(*arguments)
    text = str(caught.value)
    assert any(re.search(as_pattern(m), text) for m in MESSAGES), text
