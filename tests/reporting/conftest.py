"""Fixtures of the tests of reports."""

import importlib.util
import sys
import warnings
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "wandb_dashboard.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("wandb_dashboard", SCRIPT)
    module = sys.modules["wandb_dashboard"] = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the library's own use of pydantic
        spec.loader.exec_module(module)
    return module
