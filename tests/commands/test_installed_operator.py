"""A package that brings an operator, built and installed: every command knows it, and says where it is missing."""

import json
import os
import zipfile

import hatchling.build
import pytest

from tests.commands.processes import run_command
from tests.training.tiny_run import TINY

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "repeated-blocks"
version = "0.3"
[project.entry-points."growlm.operators"]
repeat_blocks = "repeated_blocks"
[tool.hatch.build.targets.wheel]
only-include = ["repeated_blocks.py"]
"""
MODULE = """
from dataclasses import dataclass, field, replace

from growlm.growth import BlockOrigin, GrowthSpec, UserError, limits, register_operator


@register_operator("repeat_blocks")
@dataclass(frozen=True)
class RepeatBlocks:
    \"\"\"Repeat some blocks behind the last of them.\"\"\"

    blocks: list[int] = field(default_factory=lambda: [0], metadata=limits(minimum=0))

    def change(self, config):
        if max(self.blocks) >= config.n_layers:
            raise UserError("blocks", self.blocks, f"the model has {config.n_layers}")
        origins = [BlockOrigin(i) for i in range(config.n_layers)]
        place = max(self.blocks) + 1
        origins[place:place] = [BlockOrigin(i, "identity") for i in self.blocks]
        new = config.with_blocks([origin.source for origin in origins])
        return GrowthSpec(new, [f"Blocks {self.blocks} repeated"], blocks=tuple(origins))

    def summarize(self):
        return f"{len(self.blocks)} blocks repeated"

    @classmethod
    def infer(cls, old, new):
        more = new.n_layers - old.n_layers
        places = range(old.n_layers - more + 1) if more > 0 else ()
        return [cls(list(range(first, first + more))) for first in places]
"""
GROW = "[{repeat_blocks: {blocks: [0, 1]}}]"
PLAN = (*TINY, "logger=none", "run_dir=run", f"phases.wide.grow={GROW}", "phases.deep.steps=1")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that the package is installed into, as `pip install --target` does."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "repeated_blocks.py").write_text(MODULE)
    before = os.getcwd()
    os.chdir(source)
    try:
        wheel = hatchling.build.build_wheel(str(source))
    finally:
        os.chdir(before)
    zipfile.ZipFile(source / wheel).extractall(site)
    return site


@pytest.fixture
def run(tmp_path, tmp_path_factory, monkeypatch):
    """Run a command with the package, or without it: exit code, and all that it printed."""

    def call(command, *arguments, site=None):
        monkeypatch.setenv("PYTHONPATH", str(site or ""))
        streams = tmp_path_factory.mktemp("streams")
        done = run_command(f"growlm.{command}", *arguments, folder=tmp_path, streams=streams)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    return call


def test_every_command_knows_the_operator_of_an_installed_package(run, site, tmp_path):
    code, out = run("plan", *PLAN, "format=json", site=site)
    assert code == 0, out
    forecast, _ = json.JSONDecoder().raw_decode(out)  # what it says of its progress comes behind
    assert [phase["model"]["n_layers"] for phase in forecast["phases"]] == [2, 2, 4, 5]

    code, out = run("train", *PLAN, site=site)
    assert code == 0, out
    boundary = json.loads((tmp_path / "run" / "boundaries.json").read_text())[1]
    assert boundary["operators"] == [{"repeat_blocks": {"blocks": [0, 1]}}]
    assert (boundary["passed"], boundary["growth"]) == (True, ["Blocks [0, 1] repeated"])

    page = tmp_path / "run" / "report.html"
    page.unlink(missing_ok=True)
    assert run("report", "run", site=site)[0] == 0
    assert "2 blocks repeated" in page.read_text()

    old, new = "run/checkpoints/medium_moe_final", "grown"
    code, out = run("grow", f"checkpoint={old}", f"out={new}", f"grow={GROW}", site=site)
    assert code == 0, out
    code, out = run("verify", f"old={old}", f"new={new}", site=site)
    assert (code, out.splitlines()[-1]) == (0, "passed"), out

    # Without the package.
    missing = "there is no such operator"
    group = "entry point in the group growlm.operators"
    config = tmp_path / "grown" / "config.json"
    for command in (
        ("verify", f"old={old}", f"new={new}"),
        ("train", "resume=run"),
        ("grow", f"checkpoint={old}", "out=other", f"grow={GROW}"),
    ):
        code, out = run(*command)
        assert code == 2, out
        assert "repeat_blocks" in out
        assert missing in out
        assert group in out
        assert len(out.strip().splitlines()) == 1
    page.unlink()
    assert run("report", "run")[0] == 0
    assert "2 blocks repeated" in page.read_text(), "as the run recorded it"

    # Without the record, the growth is inferred.
    (tmp_path / "grown" / "manifest.json").unlink()
    content = json.loads(config.read_text())
    del content["grown_from"]
    config.write_text(json.dumps(content))
    code, out = run("verify", f"old={old}", f"new={new}", site=site)
    assert (code, out.splitlines()[-1]) == (0, "passed"), out
    assert "Blocks [0, 1] repeated" in out


def test_help_lists_what_is_installed(run, site):
    assert (
        "repeat_blocks    Repeat some blocks behind the last of them."
        in run("grow", "--help", site=site)[1]
    )
    assert "repeat_blocks" not in run("grow", "--help")[1]
