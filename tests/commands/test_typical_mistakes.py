"""Each of the mistakes in `typical_mistakes.py` is said in one line, and leaves nothing behind."""

import importlib

import pytest

from tests.commands.processes import run_command
from tests.commands.typical_mistakes import MISTAKES


def write_files(folder, mistake):
    for name, content in mistake.files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return sorted(folder.rglob("*"))


def check(mistake, code, printed, before, folder):
    assert code == 2, printed
    assert "Traceback" not in printed
    (line,) = [each for each in printed.splitlines() if each.startswith("error: ")]
    assert [piece for piece in mistake.message if piece not in line] == [], line
    assert len(line) < 1000
    left = [
        path for path in folder.rglob("*") if path.relative_to(folder).parts[0] != mistake.leaves
    ]
    assert sorted(left) == before


@pytest.fixture
def surroundings(tmp_path, monkeypatch):
    """An empty folder to stand in, and an environment without what a developer may have set."""
    monkeypatch.chdir(tmp_path)
    for name in ("WORLD_SIZE", "RANK", "WANDB_API_KEY", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(each, id=each.id, marks=[pytest.mark.slow] if each.is_slow else [])
        for each in MISTAKES
    ],
)
def test_a_mistake_is_one_line(mistake, surroundings, monkeypatch, capfd):
    before = write_files(surroundings, mistake)
    for name, value in mistake.environment.items():
        monkeypatch.setenv(name, value)
    command, *arguments = mistake.arguments
    monkeypatch.setattr("sys.argv", [command, *arguments])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"growlm.{command}").main()
    check(mistake, ended.value.code, capfd.readouterr().err, before, surroundings)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mistake", [each for each in MISTAKES if each.is_real], ids=lambda mistake: mistake.id
)
def test_in_a_process_of_its_own(mistake, surroundings, monkeypatch, tmp_path_factory):
    before = write_files(surroundings, mistake)
    for name, value in mistake.environment.items():
        monkeypatch.setenv(name, value)
    command, *arguments = mistake.arguments
    streams = tmp_path_factory.mktemp("streams")
    done = run_command(f"growlm.{command}", *arguments, folder=surroundings, streams=streams)
    check(mistake, done.returncode, done.stderr, before, surroundings)


def test_the_table_is_as_large_as_it_is_meant_to_be():
    assert sum(not mistake.is_slow for mistake in MISTAKES) >= 40
    assert sum(mistake.is_real for mistake in MISTAKES) >= 10
    assert len({mistake.id for mistake in MISTAKES}) == len(MISTAKES)
