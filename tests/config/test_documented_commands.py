"""The commands of some pages: every one composes into a plan that its devices can share."""

import re
import shlex
from pathlib import Path

import pytest

from growlm.config import load_config
from growlm.config.config_dir import split_config_dir
from growlm.config.phase_plan import make_plan
from growlm.config.validation import check_config
from growlm.plan import COMMAND_KEYS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("planner.md", "distributed.md", "own_classes.md")
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


def blocks(page, language):
    text = (DOCS / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_plans_of_the_page_on_plans_compose_with_its_commands(tmp_path):
    for text in blocks("plans.md", "yaml"):
        name, _, content = text.partition("\n")
        path = tmp_path / name.removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    lines = [line for block in blocks("plans.md", "sh") for line in block.splitlines()]
    assert len(lines) == 7
    seen = set()
    for line in lines:
        arguments = shlex.split(STARTS.search(line)[2], comments=True)
        config_dir, overrides = split_config_dir([a for a in arguments if a != "-m"])
        folder = None if config_dir is None else tmp_path / config_dir.name
        first = [o if "{" in o else o.partition(",")[0] for o in overrides]  # job of a sweep
        config = load_config(*first, config_dir=folder)
        assert make_plan(config, 1024).phases
        seen.add((config.name, *config.phases))
    assert ("mine", "small", "moe", "deep") in seen
    assert ("quickstart", "dense", "moe", "wide") in seen
    assert ("quickstart", "dense", "moe", "wide", "deep", "extra") in seen
    longer = load_config("phase_plan=longer", config_dir=tmp_path / "my_conf").phases
    assert (longer["dense"].steps, longer["dense"].tokens) == (None, 2e6)
    assert (longer["deep"].steps, longer["moe"].steps) == (200, 60)
