"""Whatever a file holds, a command ends well or says in a line what is wrong with it."""

import pytest

from tests.commands.bounded_commands import bounded, run  # noqa: F401 - fixtures
from tests.commands.fuzzed_files import change
from tests.commands.hostile_cases import copy_fixtures

UNPRINTABLE = ("\x1b", "\x9b", "\u202e")
FEW, MANY = 24, 4000


def check(seed, call, folder):
    what, command = change(seed, copy_fixtures(folder))
    code, text = call(*command)
    told = f"seed {seed}: {what}: {' '.join(command)}\n{text}"
    assert "Traceback" not in text, told
    # 1 is a check that failed, and a run or an evaluation that met NaN: the file holds what it should.
    outcomes = (0, 1, 2) if command[0] == "verify" or "stopped: " in text else (0, 2)
    assert code in outcomes, told
    if code == 2:
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, told
        assert len(errors[0]) < 2000, told
    assert not any(character in text for character in UNPRINTABLE), told


@pytest.mark.parametrize("seed", range(FEW))
def test_a_changed_file(seed, run, tmp_path):  # noqa: F811
    check(seed, run, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FEW, MANY))
def test_many_changed_files(seed, run, tmp_path):  # noqa: F811
    check(seed, run, tmp_path)
