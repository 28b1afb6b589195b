"""The commands of some pages: every one composes into a plan that its devices can share."""

import re
import shlex
from pathlib import Path

import pytest

from growlm.config import load_config
from growlm.config.phase_plan import make_plan
from growlm.config.validation import check_config
from growlm.plan import COMMAND_KEYS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("planner.md", "distributed.md", "cluster.md", "bring_your_own.md")
STARTS = re.compile(r"-m growlm\.(train|plan)\b(.*)")


def commands():
    for page in PAGES:
        text = (DOCS / page).read_text()
        blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        inline = re.findall(r"`([^`\n]*-m growlm[^`]*)`", text)
        for line in (*lines, *inline):
            if (found := STARTS.search(line)) and "[overrides]" not in line:
                yield pytest.param(line, found[2], id=f"{page}: {line.strip()[:70]}")


@pytest.mark.parametrize(("line", "arguments"), list(commands()))
def test_it_composes(line, arguments):
    overrides, numbers = [], ["1"]
    per_node = re.search(r"--nproc-per-node (\d+)", line)
    if per_node and "resume=/" not in line:
        nodes = re.search(r"--nnodes (\d+)", line)
        numbers = [str(int(per_node[1]) * int(nodes[1] if nodes else 1))]
    for argument in shlex.split(arguments, comments=True):
        key, equals, value = argument.partition("=")
        if not equals and key.startswith("$"):
            continue  # what a script was given
        if key == "devices":
            numbers = value.split(",")
        elif key not in (*COMMAND_KEYS, "-m", "resume", "trainer.devices"):
            overrides.append(f"{key}={value.split(',')[0]}")  # of a sweep, the first job
        elif key == "trainer.devices":
            numbers = [value]
    for number in numbers:
        config = load_config(*overrides, f"trainer.devices={number}")
        check_config(config)
        assert make_plan(config, 1024).phases


def test_there_are_some():
    assert len(list(commands())) > 10
