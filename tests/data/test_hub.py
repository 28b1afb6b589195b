"""Datasets through the `datasets` library: folders laid out like the hub's, its cache, and no hub at all."""

import gc
import json
import shutil
import socket
import time

import datasets
import httpx
import huggingface_hub
import pytest

from growlm.data.sources import hub_access
from growlm.data.sources.hub import HubDataset
from growlm.runtime.errors import RunError, UserError
from tests.training.stopping import slow

DOCUMENTS = [f"document {i} \u00e9" for i in range(60)]


@pytest.fixture(scope="module", autouse=True)
def _own_library_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


def fill(folder, documents=DOCUMENTS):
    """Two shards, with rows that have no text among them."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, part in enumerate((documents[:25], documents[25:])):
        rows = [{"text": text, "number": i} for i, text in enumerate([*part, None, "  "])]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"train-{shard}.jsonl").write_text(lines)
    return folder


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "dataset")


def opened(name, **changes):
    settings = {"config": None, "split": "train", "column": "text", "streaming": False}
    return HubDataset(str(name), **(settings | changes))


@pytest.mark.parametrize("streaming", [False, True])
def test_documents_come_in_order_and_from_any_place(folder, streaming):
    source = opened(folder, streaming=streaming)
    assert list(source.read()) == DOCUMENTS
    for stop in (0, 1, 24, 25, 26, 59, 60):
        reader = source.read()
        for _ in range(stop):
            next(reader)
        place = json.loads(json.dumps(reader.position()))
        assert list(source.read(place)) == DOCUMENTS[stop:]
        assert list(opened(folder, streaming=streaming).read(place)) == DOCUMENTS[stop:]


CSV_ROWS = ["null", "None", "NA", "nan", "", "007", "1e5", "2021-01-01", "caf\u00e9"]


def fill_csv(folder, ending="csv"):
    """A table of which other columns are empty here and there, in more than one of the library's batches."""
    folder.mkdir()
    mark = "\t" if ending == "tsv" else ","
    lines = [f"{text}{mark}{'' if i % 9 else i}{mark}NA\n" for i, text in enumerate(CSV_ROWS)]
    (folder / f"train.{ending}").write_text(f"text{mark}number{mark}country\n" + "".join(lines))
    return folder


@pytest.fixture
def open_files():
    """Collects what releases of datasets before 4 leave open of CSV files, while warnings of it are ignored."""
    yield
    gc.collect()


def reads_csv(test):
    ignored = "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    return pytest.mark.usefixtures("open_files")(pytest.mark.filterwarnings(*ignored)(test))


@reads_csv
@pytest.mark.parametrize(("ending", "streaming"), [("csv", False), ("csv", True), ("tsv", False)])
def test_text_in_csv_is_as_it_is_written(ending, streaming, tmp_path):
    source = opened(fill_csv(tmp_path / "csv", ending), streaming=streaming)
    assert list(source.read()) == [text for text in CSV_ROWS if text]
    assert source.notes == ()
    assert source.identity() == opened(source.name, streaming=streaming).identity()
    selected = opened(source.name, streaming=streaming, filters={"number": [0], "country": "NA"})
    reader = selected.read()
    assert list(reader) == ["null"]
    assert reader.selection == {"filter": len(CSV_ROWS) - 1}
    with pytest.raises(
        UserError, match=r"data\.filter=lang: no such column; .*: text, number, cou"
    ):
        opened(source.name, streaming=streaming, filters={"lang": "en"})


@reads_csv
@pytest.mark.parametrize("streaming", [False, *slow(True)])
def test_csv_of_another_encoding_or_header_is_named(streaming, tmp_path):
    path = fill_csv(tmp_path / "csv") / "train.csv"
    text = path.read_text()
    path.write_text(text.replace("text,number", "text,text"))
    (note,) = opened(tmp_path / "csv", streaming=streaming).notes
    assert "has the columns text and text.1; if its header has text twice, only the first" in note
    path.write_text("x" * 200_000 + ",b\n1,2\n")
    with pytest.raises(UserError, match=r"data\.column=text: no such column; .*: x{40}…, b$"):
        opened(tmp_path / "csv", streaming=streaming)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"data\.name=.*can't decode byte 0xe9.*, in .*train\.csv"):
        list(opened(tmp_path / "csv", streaming=streaming).read())


@pytest.mark.parametrize("streaming", [False, *slow(True)])
def test_a_column_inside_another_and_a_filter(streaming, tmp_path):
    rows = [{"id": i, "turns": [{"text": f"turn {i}"}, {"text": "b"}]} for i in range(9)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = opened(tmp_path, streaming=streaming, column="turns.0.text", filters={"id": ">=3"})
    reader = source.read()
    assert [next(reader), next(reader)] == ["turn 3", "turn 4"]
    place = json.loads(json.dumps(reader.position()))
    assert list(source.read(place)) == [f"turn {i}" for i in range(5, 9)]
    plain = opened(tmp_path, streaming=streaming, column="turns.0.text")
    assert plain.identity() != source.identity()
    assert len(plain.identity()) == 4  # as before there were filters
    with pytest.raises(UserError, match=r"data\.column=turns: holds a list, not text; name what"):
        list(opened(tmp_path, streaming=streaming, column="turns").read())


def test_files_of_a_folder_that_the_library_does_not_read_are_named(folder):
    assert opened(folder).notes == ()
    (folder / "test.jsonl").write_text('{"text": "of another split", "number": 1}\n')
    (folder / "README.md").write_text("A card.\n")
    (folder / "more.csv").write_text("text\na\n")
    (note,) = opened(folder).notes
    assert note.endswith(
        "1 found but not read, more.csv: the datasets library reads files of one kind"
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_the_place_before_anything_is_read_is_where_it_began(folder, streaming):
    source = opened(folder, streaming=streaming)
    place = None
    for stop in (0, 30, 0, 0, 7, 23):  # each goes on from where the last one stood
        reader = source.read(place)
        for _ in range(stop):
            next(reader)
        place = json.loads(json.dumps(reader.position()))
    assert list(source.read(place)) == []
    reader = source.read(place)
    assert list(source.read(reader.position())) == []
    begun = source.read()
    assert list(source.read(begun.position())) == DOCUMENTS


@pytest.mark.parametrize("streaming", [False, True])
def test_readers_do_not_disturb_each_other(folder, streaming):
    source = opened(folder, streaming=streaming)
    first, second = source.read(), source.read()
    pairs = [(next(first), next(second)) for _ in range(60)]
    assert pairs == [(text, text) for text in DOCUMENTS]


def test_a_part_of_a_split(folder):
    assert list(opened(folder, split="train[:10]").read()) == DOCUMENTS[:10]


@pytest.mark.parametrize("streaming", [False, True])
def test_its_identity_changes_with_its_files(folder, streaming):
    before = opened(folder, streaming=streaming).identity()
    assert opened(folder, streaming=streaming).identity() == before
    fill(folder, ["other", *DOCUMENTS[1:]])
    after = opened(folder, streaming=streaming)
    assert after.identity() != before
    assert next(after.read()) == "other"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"column": "story"}, r"data\.column=story: no such column; its columns are: text, number"),
        ({"column": "number"}, r"data\.column=number: holds a int, not text"),
        ({"split": "test"}, r"data\.split=test: .*train"),
        ({"config": "none"}, r"data\.config=none: .*Available: \['default'\]"),
        (
            {"name": "./nowhere"},
            r"data\.name=\./nowhere: is neither a local folder nor a dataset name",
        ),
        ({"name": "text"}, r"data\.name=text: .*OWNER/NAME"),
    ],
)
def test_what_is_not_there_is_said(folder, changes, message, streaming):
    with pytest.raises(UserError, match=message):
        list(opened(**({"name": folder, "streaming": streaming} | changes)).read())


def test_a_folder_with_nothing_in_it(tmp_path):
    with pytest.raises(UserError, match=r"data\.name=.*cannot be loaded: .*data files"):
        opened(tmp_path)


def test_a_file_that_cannot_be_parsed(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": \n')
    with pytest.raises(UserError, match=r"data\.name=.*cannot be loaded"):
        opened(tmp_path)


def test_a_stream_that_is_damaged_further_on(folder):
    path = folder / "train-1.jsonl"
    path.write_text(path.read_text() + '{"text": brok\n')
    reader = opened(folder, streaming=True).read()
    with pytest.raises(UserError, match=r"data\.name=.*cannot be loaded: .*JSON") as caught:
        list(reader)
    assert caught.value.__cause__ is None


def test_a_stream_that_breaks_off_can_be_resumed(folder, monkeypatch):
    source = opened(folder, streaming=True)

    def broken(self):
        yield {"text": "one"}
        raise httpx.ReadTimeout("no answer")

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", broken)
    reader = source.read()
    assert next(reader) == "one"
    with pytest.raises(RunError, match=r"ReadTimeout: no answer.*can be resumed"):
        next(reader)


@pytest.fixture
def unreachable(monkeypatch):
    """A hub behind a firewall that answers nothing; how often it was asked."""
    monkeypatch.setattr(hub_access, "HUB_TIMEOUT_S", 0.5)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        endpoint = f"http://127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", endpoint)
        yield


@pytest.mark.parametrize("streaming", [True, *slow(False)])
@pytest.mark.usefixtures("unreachable")
def test_an_unreachable_hub_is_one_message_soon(streaming, capfd):
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        opened("growlm-tests/no-such-dataset", streaming=streaming)
    assert time.monotonic() - start < 10
    assert caught.value.key == "data.name"
    for way_out in ("data=text data.path=", "data=embedded", "HF_HUB_OFFLINE"):
        assert way_out in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert capfd.readouterr().err == ""
    assert not datasets.config.HF_HUB_OFFLINE


@pytest.mark.usefixtures("unreachable")
def test_a_cached_dataset_needs_no_hub(folder):
    cache_as("growlm-tests/cached", folder)
    assert list(opened("growlm-tests/cached").read()) == DOCUMENTS


def test_offline_by_the_librarys_own_switch(folder, monkeypatch):
    cache_as("growlm-tests/switched", folder)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert list(opened("growlm-tests/switched").read()) == DOCUMENTS
    with pytest.raises(UserError, match="the hub cannot be reached"):
        opened("growlm-tests/not-cached")


def cache_as(name, folder):
    """Make the library's cache what it is after loading such a dataset from the hub."""
    owner, short = name.split("/")
    prepared = opened(folder)
    source = prepared.dataset.cache_files[0]["filename"].rpartition("/")[0]
    target = datasets.config.HF_DATASETS_CACHE / f"{owner}___{short}" / "default" / "0.0.0" / "abc"
    shutil.copytree(source, target)
    for path in target.glob("*.arrow"):
        path.rename(path.with_name(path.name.replace("dataset-", f"{short}-")))
    info = json.loads((target / "dataset_info.json").read_text())
    (target / "dataset_info.json").write_text(json.dumps(info | {"dataset_name": short}))
