"""runs.jsonl."""

import pytest
from growth_study.record_file import add_record, read_records

from growlm.runtime.errors import UserError


def test_half_a_line_of_a_killed_process_is_cut_off(tmp_path):
    path = tmp_path / "runs.jsonl"
    assert read_records(path) == []
    add_record(path, {"key": "a"})
    add_record(path, {"key": "b"})
    whole = path.read_bytes()
    for cut in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:cut])
        assert [r["key"] for r in read_records(path)] == ["a"]
        add_record(path, {"key": "c"})
        assert [r["key"] for r in read_records(path)] == ["a", "c"]


@pytest.mark.parametrize("line", ["{", "[]", '{"loss": 1}', "3"])
def test_another_file_is_refused(tmp_path, line):
    path = tmp_path / "runs.jsonl"
    path.write_text(f'{{"key": "a"}}\n{line}\n')
    with pytest.raises(UserError, match="line 2"):
        read_records(path)
    assert path.read_text().endswith(f"{line}\n")
