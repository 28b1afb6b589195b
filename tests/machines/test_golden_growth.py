"""Growth's seeded output is what it was: to the bit on this kind of processor, to rounding on any."""

import json
import os
import subprocess
import sys

import pytest

from tests.machines.golden_growth import CASES, FILE, figures, grown, kind, weights_hash

EXPECTED = json.loads(FILE.read_text())


@pytest.mark.parametrize("name", CASES)
def test_weights_to_the_bit(name):
    """`default` is a processor without AVX2, whose library of functions may be another one."""
    assert weights_hash(grown(name)) == EXPECTED[name]["hashes"][kind()]


@pytest.mark.parametrize("name", CASES)
def test_figures_to_rounding(name):
    found = figures(grown(name))
    for key, value in found.items():
        assert value == pytest.approx(EXPECTED[name][key], rel=1e-5, abs=1e-5), key


def test_mkl_of_another_vendors_processor_changes_no_bit():
    """Torch takes `sqrt`, `exp` and products from MKL, which computes other last bits on AMD than on Intel."""
    environment = os.environ | {"MKL_CBWR": "COMPATIBLE", "PYTHONPATH": os.pathsep.join(sys.path)}
    printed = subprocess.run(
        [sys.executable, FILE.with_suffix(".py")], env=environment, capture_output=True, check=True
    ).stdout
    for name, found in json.loads(printed).items():
        assert found["hashes"][kind()] == EXPECTED[name]["hashes"][kind()], name
