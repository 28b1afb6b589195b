"""Columns inside others, conditions on columns, limits of length, and what is said of what is left out."""

from __future__ import annotations

import bz2
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from growlm.cli.free_text import quote_free_text
from growlm.config import load_config
from growlm.config.command_schema import EvaluateCommand
from growlm.config.load import load_command_config
from growlm.config.schema import DataConfig, MixedSourceConfig
from growlm.config.validation import check_data_config
from growlm.data import DataListener, TextFiles, load_tokenizer, open_run_data, open_sources
from growlm.data.sources.row_values import RowFilter, get_value
from growlm.data.tokenization.token_cache import TokenCache
from growlm.inference.evaluation_text import iter_evaluation_documents
from growlm.runtime.errors import UserError
from tests.data.made_corpora import texts_of

tokenizer = load_tokenizer("bytes")
ROWS = [
    {
        "text": f"row {i} " + "x" * (i % 10),
        "lang": ["en", "de", "NA"][i % 3],
        "score": i / 2,
        "messages": [{"role": "user", "content": f"question {i}"}, {"role": "bot", "content": "a"}],
    }
    for i in range(60)
]


class Listener(DataListener):
    def __init__(self):
        self.messages = []

    def message_logged(self, text):
        self.messages.append(text)


def write_rows(folder: Path, ending: str) -> Path:
    path = folder / f"rows{ending}"
    if ending == ".parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=7)
    elif ending == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif ending == ".json":
        path.write_text(json.dumps(ROWS, indent=1))
    else:
        lines = [f"{row['text']}\t{row['lang']}\t{row['score']}\n" for row in ROWS]
        path.write_text("text\tlang\tscore\n" + "".join(lines))
    return path


def opened(path: Path, **changes):
    settings = DataConfig(**{"source": "text", "path": str(path)} | changes)
    check_data_config(settings)
    (source,) = open_sources(settings, 0)[0].values()
    return source


def prepared(folder: Path, settings: DataConfig) -> tuple[object, list[str]]:
    settings.cache, settings.validation_every = str(folder / "cache"), 5
    check_data_config(settings)
    sources, counts = open_sources(settings, 0)
    listener = Listener()
    data = open_run_data(
        settings,
        tokenizer,
        sources,
        counts,
        seed=0,
        sequence_length=16,
        validation_samples=2,
        listener=listener,
    )
    return data, listener.messages


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
def test_a_column_inside_another(ending, tmp_path):
    path = write_rows(tmp_path, ending)
    assert list(opened(path, column="messages.0.content").read()) == [
        f"question {i}" for i in range(60)
    ]
    assert list(opened(path, column="messages.-1.role").read()) == ["bot"] * 60
    with pytest.raises(UserError, match=r": (line|row) \d+ has no text in messages\.0, only: "):
        opened(path, column="messages.0.text")
    with pytest.raises(UserError, match=r"a list in messages, where content must be a position"):
        opened(path, column="messages.content")
    with pytest.raises(UserError, match=r"holds a list, not text; name what is inside"):
        opened(path, column="messages")


def test_a_path_through_a_row():
    row = {"a": {"b": [1, {"c": "x"}]}, "a.b": "dotted", "n": None}
    assert get_value(row, "a.b") == "dotted"
    assert get_value(row, "a.b.1.c") == "x"
    assert get_value(row, "a.b.-1.c") == "x"
    assert get_value(row, "a.b.2.c") is None
    assert get_value(row, "n.b") is None


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"lang": "en"}, lambda row: row["lang"] == "en"),
        ({"lang": ["en", "NA"]}, lambda row: row["lang"] != "de"),
        ({"lang": "!=en"}, lambda row: row["lang"] != "en"),
        ({"score": ">= 20"}, lambda row: row["score"] >= 20),
        (
            {"score": "<7.5", "lang": "== de"},
            lambda row: row["score"] < 7.5 and row["lang"] == "de",
        ),
        ({"score": 12}, lambda row: row["score"] == 12),
        ({"score": [1, ">=25.5"]}, lambda row: row["score"] == 1 or row["score"] >= 25.5),
    ],
)
@pytest.mark.parametrize("ending", [".jsonl", ".tsv", ".parquet"])
def test_conditions_select_rows_alike_in_all_tables(ending, conditions, expected, tmp_path):
    reader = opened(write_rows(tmp_path, ending), filter=conditions).read()
    assert list(reader) == [row["text"] for row in ROWS if expected(row)]
    assert reader.selection == {"filter": sum(not expected(row) for row in ROWS)}


def test_conditions_on_what_is_missing_or_no_number():
    accepts: Callable[..., bool] = lambda row, **conditions: RowFilter(conditions, "f").accepts(row)  # noqa: E731
    assert accepts({"a": None}, a=None)
    assert accepts({}, a=None)
    assert accepts({"a": ""}, a=None)
    assert not accepts({"a": 0}, a=None)
    assert accepts({"a": "null"}, a="null")
    assert accepts({"a": True}, a=True)
    assert accepts({"a": "True"}, a=True)
    assert not accepts({"a": "no"}, a=">=3")
    assert not accepts({}, a="<3")
    assert accepts({"a": "007"}, a=7)
    assert not accepts({"a": "7"}, a="007")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filter": {"lang": []}}, r"data\.filter\.lang=\[\]: needs at least one value"),
        ({"filter": {"score": ">high"}}, r"data\.filter\.score=>high: > must be followed by"),
        ({"filter": {"lang": {"is": "en"}}}, r"data\.filter\.lang=.*must be a value, a list"),
        ({"filter": {"langauge": "en"}}, r"data\.filter=langauge: .*no such column; .* text, lang"),
        ({"delimiter": ";;"}, r"data\.delimiter=';;': must be one character"),
        ({"delimiter": "", "max_characters": 3}, r"data\.delimiter='': must be one character"),
        ({"truncate": True}, r"data\.truncate=True: needs data\.max_characters"),
        ({"min_characters": 9, "max_characters": 3}, r"data\.max_characters=3: must be at least"),
        ({"source": "embedded", "delimiter": ";"}, r"data\.delimiter=;: only data=text can use"),
        (
            {"source": "embedded", "filter": {"a": 1}},
            r"data\.filter=.*only data=text and data=hugg",
        ),
        (
            {"source": "mixture", "max_characters": 3, "sources": {"a": MixedSourceConfig()}},
            r"data\.max_characters=3: .*data\.sources\.NAME\.max_characters",
        ),
    ],
)
def test_what_cannot_select_is_refused(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        opened(write_rows(tmp_path, ".tsv"), **changes)


def test_settings_that_no_file_can_use_are_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("text")
    with pytest.raises(
        UserError, match=r"data\.filter=lang: plain text has no columns, and .*a\.txt"
    ):
        opened(path, filter={"lang": "en"})
    with pytest.raises(UserError, match=r"data\.delimiter=;: there is no \.csv or \.tsv file"):
        opened(path, delimiter=";")


def test_settings_that_no_file_uses_are_reported(tmp_path):
    plain, table = tmp_path / "a.txt", write_rows(tmp_path, ".jsonl")
    plain.write_text("text")
    (note,) = opened(plain, column="story", sample_by="line").notes
    assert note == f"data.column=story is not used: {plain} is plain text, which has no columns"
    (note,) = opened(table, column="lang", sample_by="line", min_characters=1).notes
    assert note == f"data.sample_by=line is not used: no file of {table} is plain text"
    assert opened(plain).notes == opened(table).notes == ()
    assert opened(tmp_path, column="lang", sample_by="line").notes == ()


@pytest.mark.parametrize(
    ("delimiter", "name"), [(";", ";"), ("|", "|"), ("\t", "tab"), ("\t", r"\t")]
)
def test_a_delimiter(delimiter, name, tmp_path):
    (tmp_path / "a.csv").write_text(f'n{delimiter}text\n1{delimiter}"a{delimiter}b"\n')
    assert list(opened(tmp_path / "a.csv", delimiter=name).read()) == [f"a{delimiter}b"]


def test_documents_outside_the_limits_are_left_out_or_cut(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n".join("x" * i for i in range(1, 11)))
    limits = {"sample_by": "line", "min_characters": 4, "max_characters": 6}
    reader = opened(path, **limits).read()
    assert [len(text) for text in reader] == [4, 5, 6]
    assert reader.selection == {"min_characters": 3, "max_characters": 4}
    reader = opened(path, truncate=True, **limits).read()
    assert [len(text) for text in reader] == [4, 5, 6, 6, 6, 6, 6]
    assert reader.selection == {"min_characters": 3, "truncate": 4}


@pytest.mark.parametrize("source", ["embedded", "text"])
def test_reading_goes_on_from_any_place_of_a_selection(source, tmp_path):
    changes = {"filter": {"lang": ["en", "de"]}} if source == "text" else {}
    selected = opened(
        write_rows(tmp_path, ".jsonl"),
        source=source,
        documents=40,
        max_characters=12 if source == "text" else 960,
        truncate=source == "text",
        **changes,
    )
    everything = list(selected.read())
    assert 10 < len(everything) <= 40
    for stop in range(len(everything) + 1):
        reader = selected.read()
        for _ in range(stop):
            next(reader)
        place = json.loads(json.dumps(reader.position()))
        assert list(selected.read(place)) == everything[stop:]


def test_each_source_of_a_mixture_selects_and_the_run_says_how_much(tmp_path):
    path = write_rows(tmp_path, ".jsonl")

    def settings(**changes):
        english = MixedSourceConfig(source="text", path=str(path), filter={"lang": "en"})
        short = MixedSourceConfig(
            source="text", path=str(path), max_characters=12, truncate=True, min_characters=9
        )
        return DataConfig(source="mixture", sources={"english": english, "short": short}, **changes)

    data, messages = prepared(tmp_path, settings())
    again, repeated = prepared(tmp_path, settings())
    assert messages == repeated  # also where the tokens come from the cache
    assert "40 left out by data.sources.english.filter" in messages[0]
    shorter, longer = sum(len(r["text"]) < 9 for r in ROWS), sum(len(r["text"]) > 12 for r in ROWS)
    assert shorter
    assert longer
    assert f"{shorter} left out by data.sources.short.min_characters" in messages[1]
    assert f"{longer} cut at data.sources.short.max_characters" in messages[1]
    held_out = texts_of(data.validation_split.tokens)
    streamed, _ = prepared(tmp_path, settings(streaming=True))
    assert texts_of(streamed.validation_split.tokens) == held_out
    assert all((streamed.train[i] == data.train[i]).all() for i in range(60))
    assert again.fingerprint == data.fingerprint
    notes = []
    texts = list(iter_evaluation_documents(settings(), 0, "all", notes.append))
    assert sorted(texts) == sorted(
        [row["text"] for row in ROWS if row["lang"] == "en"]
        + [row["text"][:12] for row in ROWS if len(row["text"]) >= 9]
    )
    assert sorted(note.partition(": ")[2] for note in notes) == sorted(
        message.rpartition("; ")[2] for message in messages
    )


def test_nothing_left_is_said_with_what_left_it_out(tmp_path):
    path = write_rows(tmp_path, ".jsonl")
    with pytest.raises(UserError, match=r"no document is left \(60 left out by data\.min_char"):
        prepared(tmp_path, DataConfig(source="text", path=str(path), min_characters=99))


def test_settings_are_part_of_the_identity_only_where_they_are_set(tmp_path):
    path = write_rows(tmp_path, ".jsonl")
    stat = path.stat()
    plain = opened(path)
    assert plain.identity() == [
        "text", "text", "paragraph", [["rows.jsonl", stat.st_size, stat.st_mtime_ns]],
    ]  # fmt: skip
    assert plain.content_identity(lambda path: "sum") == [
        "text", "text", "paragraph", [["jsonl", "", "sum"]],
    ]  # fmt: skip
    identities = [
        json.dumps([source.identity(), source.content_identity(lambda path: "sum")])
        for source in (
            plain,
            opened(path, filter={"lang": "en"}),
            opened(path, filter={"lang": "de"}),
            opened(path, min_characters=1),
            opened(path, max_characters=9),
            opened(path, max_characters=9, truncate=True),
        )
    ]
    assert len(set(identities)) == len(identities)
    write_rows(tmp_path, ".tsv").rename(tmp_path / "rows.csv")
    (tmp_path / "comma.csv").write_text("text,b\n1,2\n")
    pattern = str(tmp_path / "comma.csv")
    assert opened(pattern).identity() != opened(pattern, delimiter=",").identity()


def test_a_folders_other_files_are_named(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("from a" * 9 + "\n\nmore" * 3)
    (folder / "b.ndjson").write_text(json.dumps({"text": "from b" * 9}))
    (folder / "c.tsv").write_text("n\ttext\n1\tfrom c\n")
    (folder / "d.json").write_text('[{"text": "from d"}]')
    (folder / "e.md").write_text("from e")
    (folder / "f.txt.bz2").write_bytes(bz2.compress(b"from f" * 9))
    (folder / "g.txt").write_text("")
    (folder / ".hidden").write_text("hidden")
    data, messages = prepared(tmp_path, DataConfig(source="text", path=str(folder)))
    assert data.validation_split.num_documents == 1
    assert messages[0].startswith(
        f"{folder}: 2 found but not read, d.json, e.md: in a folder, only"
    )
    assert messages[1] == f"{folder}: 1 found but not read, g.txt: they are empty"
    notes = []
    texts = list(
        iter_evaluation_documents(
            DataConfig(source="text", path=str(folder)), 0, "all", notes.append
        )
    )
    assert texts == ["from a" * 9, *["more"] * 3, "from b" * 9, "from c", "from f" * 9]
    assert notes == messages[:2]
    (folder / "below").mkdir()
    (note,) = TextFiles(f"{folder}/[be]*", "text", "line").notes
    assert "1 found but not searched, below: they are folders (** searches them)" in note
    (folder / "below" / "x.md").write_text("x")
    with pytest.raises(UserError, match=r"no \.txt, .* file in this folder, only x\.md; must be"):
        TextFiles(str(folder / "below"), "text", "line")


WHITE_LINES = "one\n  \t\ntwo\n\u3000\n\nthree\n \n"


def test_lines_of_white_space_part_paragraphs(tmp_path):
    (tmp_path / "a.txt").write_text(WHITE_LINES)
    assert list(opened(tmp_path).read()) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("text", "is_kept"),
    [("a\n\nb\n\nc\n" * 99, True), (WHITE_LINES * 99, False)],
    ids=["alike", "otherwise"],
)
def test_tokens_of_an_earlier_version_are_kept_where_it_parted_paragraphs_alike(
    text, is_kept, tmp_path, monkeypatch
):
    (tmp_path / "a.txt").write_text(text)
    settings = DataConfig(source="text", path=str(tmp_path / "a.txt"))
    with monkeypatch.context() as patch:  # the identity as it was
        patch.setattr(TextFiles, "_has_paragraphs", lambda self: False)
        prepared(tmp_path, settings)
    (before,) = (path for path in (tmp_path / "cache").iterdir() if (path / "corpus.json").exists())
    inode = os.stat(before / "train.tokens").st_ino
    written = []
    write = TokenCache._write
    monkeypatch.setattr(TokenCache, "_write", lambda *args: written.append(1) or write(*args))
    for _ in range(2):
        prepared(tmp_path, settings)
    entries = [path for path in (tmp_path / "cache").iterdir() if (path / "corpus.json").exists()]
    assert (len(written), len(entries)) == ((0, 1) if is_kept else (1, 2))
    assert inode in {os.stat(path / "train.tokens").st_ino for path in entries}


def test_a_place_that_counts_paragraphs_as_an_earlier_version_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("zero\n\n \n" + WHITE_LINES)
    source = opened(tmp_path)
    everything = list(source.read())
    assert everything == ["zero", "one", "two", "three"]
    for stop in range(5):  # a place of today says that it counted white lines
        reader = source.read()
        for _ in range(stop):
            next(reader)
        assert list(source.read(json.loads(json.dumps(reader.position())))) == everything[stop:]
    assert list(source.read([0, 1])) == everything[1:]  # nothing before it was parted otherwise
    with pytest.raises(UserError, match=r"data\.path=.*a\.txt: .*white space; start a new run"):
        list(source.read([0, 2]))


def test_settings_are_given_alike_to_training_and_evaluation():
    given = ("data.filter.lang=en", "data.filter={score: '>2'}", "+data.filter.n=3")
    chosen = ("data=text", "data.path=x", "data.max_characters=9")
    delimiter = quote_free_text("data.delimiter=;")
    run = load_config(*chosen, *given, delimiter).data
    arguments = ["checkpoint=x", *chosen, *given, delimiter]
    command = load_command_config("evaluate", EvaluateCommand, arguments).data
    assert run.filter == command.filter == {"lang": "en", "score": ">2", "n": 3}
    assert run.delimiter == command.delimiter == ";"
    assert run.max_characters == command.max_characters == 9


def test_settings_of_a_mixtures_source_are_given_alike_to_training_and_evaluation():
    given = ["data=mixture", "data.sources.mine.path=x", "data.sources.mine.filter={a: ['>=3', b]}"]
    run = load_config(*given).data
    command = load_command_config("evaluate", EvaluateCommand, ["checkpoint=x", *given]).data
    assert run.sources == command.sources
    assert run.sources["mine"].filter == {"a": [">=3", "b"]}
