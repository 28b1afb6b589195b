"""The Python API, the configuration reference and the sidebar of the site say what there is."""

import importlib
import re
from pathlib import Path

import pytest
import write_config_reference
import yaml

DOCS = Path(__file__).parents[2] / "docs"
API = {path: path.read_text() for path in sorted((DOCS / "api").glob("*.md"))}
SHOWN = sorted(name for text in API.values() for name in re.findall(r"^::: (\S+)", text, re.M))
PUBLIC = {  # what others rely on: it stays
    "growlm.model": "ModelConfig TransformerLM parameter_report",
    "growlm.growth": "grow Upcycle Widen Deepen MultiplyExperts register_operator scale_bilaterally "
    "hyperclone_weight",
    "growlm.training": "run_plan fit_phases GrowthCallback PhaseState PhaseStage",
    "growlm.config": "load_config",
    "growlm.verification": "verify_functional_equivalence detailed_growth_check quick_sanity_check "
    "check_rope_integrity check_router_scaling check_symmetry_breaking check_functional_identity_layerwise",
    "growlm.huggingface": "to_growlm to_huggingface grow_folder",
    "growlm.checkpoint": "save_model load_model",
    "growlm.reporting.html": "write_report",
}


def find(name):
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except AttributeError:
        return importlib.import_module(name)


@pytest.mark.parametrize("name", SHOWN)
def test_it_exists_and_says_what_it_does(name):
    assert (find(name).__doc__ or "").strip()


def test_every_public_name_has_its_place():
    public = {f"{package}.{name}" for package, names in PUBLIC.items() for name in names.split()}
    assert public <= set(SHOWN)
    assert len(SHOWN) == len(set(SHOWN))


def test_what_a_package_exports_is_on_its_page():
    for package in ("growth", "model", "training", "verification", "checkpoint"):
        exported = importlib.import_module(f"growlm.{package}").__all__
        missing = {f"growlm.{package}.{name}" for name in exported} - set(SHOWN)
        assert missing <= {"growlm.growth.MAX_NOISE_STD", "growlm.growth.UserError"}


def test_the_configuration_reference_is_what_the_code_says():
    page = DOCS / "configuration.md"
    assert page.read_text() == write_config_reference.write_page(), "run `make docs-reference`"


def test_a_field_without_docstring_is_found():
    field = next(iter(write_config_reference.dataclasses.fields(write_config_reference.Setting)))
    with pytest.raises(LookupError, match="key has no docstring"):
        write_config_reference._meaning({}, field)


def pages(entries):
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from pages(value) if isinstance(value, list) else [value]


def test_the_sidebar_has_every_page_once():
    named = list(pages(yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text())["nav"]))
    assert sorted(named) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
