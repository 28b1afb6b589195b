"""The layout of docs/CONTRIBUTING.md: dependencies point one way, folders are small, names are unique."""

import ast
import importlib
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

import growlm

ROOT = Path(growlm.__file__).parent
LAYERS = (
    ("runtime",),
    ("storage", "distributed"),
    ("model",),
    ("growth",),
    ("verification", "checkpoint"),
    ("data",),
    ("huggingface",),
    ("config",),
    ("optim", "inference"),
    ("planner", "reporting"),
    ("training",),
    ("cli",),
    ("sweep",),
)
"""Packages from the bottom up; one may import what stands before its own line, and nothing else."""
RENAMED = {"interop"}
"""Old names, which lead upwards."""
MOST_FILES = 15


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path


def package_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / parts[1]).is_dir() else None


def imported(path):
    """The modules that a file imports, those for type checkers aside."""
    tree = ast.parse(path.read_text())
    unseen = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_point_one_way():
    height = {package: i for i, layer in enumerate(LAYERS) for package in layer}
    wrong = []
    for module, path in modules():
        own = package_of(module)
        if own is None or own in RENAMED:
            continue
        for target in imported(path):
            other = package_of(target) if target.startswith("growlm.") else None
            if other not in (None, own) and other not in RENAMED and height[other] >= height[own]:
                wrong.append(f"{module} imports {target}")
    assert wrong == []


def test_every_package_has_its_place():
    packages = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert packages - RENAMED == {package for layer in LAYERS for package in layer}
    tour = (ROOT.parent / "docs" / "CONTRIBUTING.md").read_text()
    assert {name for name in packages - RENAMED if f"| `{name}/` |" not in tour} == set()


@pytest.mark.parametrize("package", ["model", "growth"])
def test_the_library_needs_torch_and_numpy_only(package):
    standard = set(sys.stdlib_module_names) | {"growlm", "torch", "numpy"}
    for module, path in modules():
        if package_of(module) == package:
            found = {target.split(".")[0] for target in imported(path)}
            assert found <= standard, module


def test_folders_are_small():
    counts = Counter(path.parent for _, path in modules() if path.name != "__init__.py")
    assert {str(folder): n for folder, n in counts.items() if n > MOST_FILES} == {}


def test_a_file_name_means_one_thing():
    names = Counter(path.name for _, path in modules())
    del names["__init__.py"]
    # The old modules' names lead to the new ones.
    twice = {name for name, n in names.items() if n > 1} - {"generation.py", "sampling.py"}
    assert twice - {"precision.py", "errors.py", "transformers_model.py"} == set()


def test_no_export_shadows_a_module():
    for module, path in modules():
        if path.name == "__init__.py":
            package = importlib.import_module(module)
            for name in getattr(package, "__all__", ()):
                assert not (path.parent / f"{name}.py").exists(), f"{module}.{name}"


def test_old_names_lead_to_the_new_ones():
    """For one release, with a warning that names the new place."""
    for module, path in modules():
        text = path.read_text()
        if module == "growlm.runtime.deprecation" or "renamed_attributes(" not in text:
            continue
        package = importlib.import_module(module)
        table = re.findall(r'^        "(\w+)": "([\w.:]+)"', text, flags=re.MULTILINE)
        assert table, module
        for old, _ in table:
            with pytest.warns(DeprecationWarning, match=rf"{module}\.{old} is now growlm\."):
                assert getattr(package, old) is not None
