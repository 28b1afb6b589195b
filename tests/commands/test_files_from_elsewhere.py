"""Broken and hostile files: each is refused in one line that names it, in bounded time and memory."""

import json

import pytest

from tests.commands.bounded_commands import bounded, run  # noqa: F401 - fixtures
from tests.commands.hostile_cases import CASES, copy_fixtures
from tests.reporting.written_run import page_data


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.command[0]}: {case.name}")
def test_a_file(case, run, tmp_path):  # noqa: F811
    copy_fixtures(tmp_path)
    case.damage(tmp_path)
    code, text = run(*case.command)
    assert code == case.code, text
    if (page := tmp_path / "page.html").exists():
        text += json.dumps(page_data(page), ensure_ascii=False).replace("\\\\", "\\")
    for wanted in case.names:
        assert wanted in text
    for hidden in case.hides:
        assert hidden not in text
    if code == 2:
        (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
        assert len(line) < 1000
        assert case.names[0] in line or case.names[-1] in line
    if (tmp_path / "secret").exists():
        assert (tmp_path / "secret").read_text() in ("precious", "private", "token: hunter2\n")
