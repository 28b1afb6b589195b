"""Files of prompts: every kind of file that training reads, and what is refused."""

import json

import pytest

from growlm.data import load_tokenizer
from growlm.inference.prompts import read_prompts
from growlm.runtime.errors import UserError
from tests.data.test_text_files import ENDINGS, write

tokenizer = load_tokenizer("bytes")
PROMPTS = ["One", "Two, three\u2028four", "木"]


def read(path, max_seq_len=99):
    return [prompt.text for prompt in read_prompts(None, str(path), tokenizer, max_seq_len)]


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_kind_of_file_gives_its_prompts(ending, tmp_path):
    assert read(write(tmp_path / f"p{ending}", PROMPTS, "prompt")) == PROMPTS


def test_a_mark_of_byte_order_is_no_prompt(tmp_path):
    (tmp_path / "p.txt").write_text("Once\r\n \r\nTwice\r\n", encoding="utf-8-sig", newline="")
    assert read(tmp_path / "p.txt") == ["Once", "Twice"]
    (tmp_path / "p.jsonl").write_text('{"prompt": "Once"}\n', encoding="utf-8-sig")
    assert read(tmp_path / "p.jsonl") == ["Once"]


def test_an_empty_prompt_of_an_object_starts_a_new_text(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": ""}\n\n{"prompt": " "}\n')
    assert read(tmp_path / "p.jsonl") == ["", " "]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": null}', r"line 2 has no text under 'prompt'"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": 5}', r"under 'prompt': line 2 holds a int"),
        ("p.jsonl", '{"text": "a"}', r"under 'prompt': line 1 has no such column; .*: text$"),
        ("p.jsonl", '{"prompt": "a", "prompt": "b"}', r"line 1 has the key prompt twice"),
        ("p.csv", "id;prompt\n1;a\n", r"under 'prompt': has no such column; .*: id;prompt$"),
        ("p.txt", b"good\ncaf\xe9\n", r"is not UTF-8 text: byte 0xe9 in line 2"),
        ("p.txt", "\n \n", r"contains no prompts"),
        ("p.txt", "", r"contains no prompts"),
    ],
)
def test_what_is_no_prompt_is_refused_with_its_place(name, content, message, tmp_path):
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"^prompts_file=.*{name}: .*{message}"):
        read(tmp_path / name)


def test_a_prompt_that_is_too_long_is_named_by_its_line(tmp_path):
    (tmp_path / "p.txt").write_text("short\n\n" + "x" * 50)
    with pytest.raises(UserError, match=r"^prompts_file line 3='x{40} …': has 50 tokens"):
        read(tmp_path / "p.txt", 50)
    rows = "".join(json.dumps({"prompt": "x" * n}) + "\n" for n in (1, 50))
    (tmp_path / "p.jsonl").write_text(rows)
    with pytest.raises(UserError, match=r"^prompts_file line 2='x{40} …': has 50 tokens"):
        read(tmp_path / "p.jsonl", 50)


def test_a_file_of_more_than_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("growlm.inference.prompts.MAX_PROMPT_CHARACTERS", 9)
    (tmp_path / "p.txt").write_text("12345\n1234\n")
    assert len(read(tmp_path / "p.txt")) == 2
    (tmp_path / "p.txt").write_text("12345\n12345\n")
    with pytest.raises(UserError, match=r"p\.txt: is larger than the limit of 9 characters"):
        read(tmp_path / "p.txt")
