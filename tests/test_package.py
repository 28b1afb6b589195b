"""What is installed: a wheel with its configuration, and a README whose commands are the ones that work."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from growlm.checkpoint import save_model
from growlm.config import load_config
from growlm.config.phase_plan import make_plan
from growlm.model import TransformerLM

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_carries_configuration_and_tokenizer(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {path.relative_to(ROOT / "conf").as_posix() for path in ROOT.glob("conf/**/*.yaml")}
    assert {f"growlm/conf/{name}" for name in shipped} <= set(names)
    assert "growlm/data/embedded.tiktoken" in names
    page = {path.name for path in (ROOT / "growlm/reporting/html/assets").iterdir()}
    assert {f"growlm/reporting/html/assets/{name}" for name in page} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "outputs/"))]


def test_the_wheel_works_away_from_the_checkout(wheel, tmp_path):
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    code = "import growlm, growlm.config as c; print(growlm.__file__); print(c.load_config().name)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    where, name = done.stdout.split()
    assert where.startswith(str(installed))
    assert name == "quickstart"


@pytest.mark.parametrize("name", ["lowest", "newest"])
def test_constraints_are_within_the_bounds(name):
    """The lowest are the lower bounds themselves: `make constraints` writes both files."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = map(Requirement, project["dependencies"] + project["optional-dependencies"]["test"])
    lines = (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    for requirement in wanted:
        version = pinned[requirement.name]
        assert requirement.specifier.contains(version), requirement
        lowest = [s.version for s in requirement.specifier if s.operator == ">="]
        if name == "lowest":
            assert Version(version).release[:2] == Version(lowest[0]).release[:2], requirement


def test_one_package_has_one_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = {}
    for text in itertools.chain(
        project["dependencies"], *project["optional-dependencies"].values()
    ):
        requirement = Requirement(text)
        bounds.setdefault(requirement.name, set()).add(str(requirement.specifier))
    assert {name: found for name, found in bounds.items() if len(found) > 1} == {}


def readme_commands():
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    commands = [line for line in lines if "-m growlm.train" in line]
    return [line for line in commands if "resume=" not in line]  # that needs a run


@pytest.fixture(scope="module")
def readers_folder(tmp_path_factory):
    """A folder with what the README's commands name."""
    folder = tmp_path_factory.mktemp("reader")
    save_model(TransformerLM(load_config().model.to_model_config(257)), folder / "my_llama", {})
    own = folder / "my_conf" / "phase_plan" / "mine.yaml"
    own.parent.mkdir(parents=True)
    shutil.copy(ROOT / "conf" / "phase_plan" / "quickstart.yaml", own)
    return folder


@pytest.mark.parametrize("command", readme_commands())
def test_every_training_command_of_the_readme_plans(command, readers_folder, monkeypatch):
    monkeypatch.chdir(readers_folder)
    arguments = command.partition("-m growlm.train")[2].split()
    folder = None
    if "--config-dir" in arguments:
        place = arguments.index("--config-dir")
        folder = arguments[place + 1]
        del arguments[place : place + 2]
    overrides = []
    for argument in arguments:
        if argument == "-m":
            continue
        key, _, value = argument.partition("=")
        overrides.append(f"{key}={value.split(',')[0]}")  # of a sweep, the first job
    assert make_plan(load_config(*overrides, config_dir=folder), 257).phases


def test_library_packages_do_not_import_the_frameworks():
    code = (
        "import sys, growlm.model, growlm.growth, growlm.verification, growlm.checkpoint\n"
        "print([m for m in ('lightning', 'hydra', 'wandb', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
