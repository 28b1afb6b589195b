"""Growth's seeded output is what it was: to the bit on this kind of processor, to rounding on any."""

import json

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
