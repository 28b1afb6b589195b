"""From the data settings to samples, and the settings that cannot be followed."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import growlm
from growlm.config.schema import DataConfig, MixedSourceConfig
from growlm.data import (
    DataListener,
    RunData,
    ValidationSplit,
    embedded_documents,
    load_tokenizer,
    open_run_data,
    open_sources,
)
from growlm.data.shuffling import MIXTURE_BLOCK_SIZE, compute_block_counts, mixture_order
from growlm.data.validation_split import collect_validation_split
from growlm.inference.evaluation_text import iter_evaluation_documents
from growlm.runtime.errors import UserError
from tests.data.made_corpora import texts_of
from tests.data.test_text_files import write

tokenizer = load_tokenizer("bytes")
LENGTH = 16


def prepared(folder: Path, validation_samples: int = 3, seed: int = 5, **changes) -> RunData:
    settings = DataConfig(**{"cache": str(folder / "cache"), "validation_every": 5} | changes)
    sources, counts = open_sources(settings, seed)
    return open_run_data(
        settings,
        tokenizer,
        sources,
        counts,
        seed=seed,
        sequence_length=LENGTH,
        validation_samples=validation_samples,
        listener=DataListener(),
    )


def first_texts(data: RunData, samples: int) -> list[str]:
    """Whole documents at the beginning of the row."""
    tokens = torch.cat([data.train[i][:-1] for i in range(samples)])
    return texts_of(tokens.numpy())[:-1]


def test_embedded_stories(tmp_path):
    data = prepared(tmp_path, documents=50)
    stories = list(embedded_documents(5, 50))
    assert texts_of(data.validation_split.tokens)[:-1] == stories[4::5]
    assert data.validation_split.document_bytes.tolist() == [
        len(story.encode()) for story in stories[4::5]
    ]
    per_epoch = sum(len(text.encode()) + 1 for i, text in enumerate(stories) if i % 5 != 4)
    found = first_texts(data, -(-per_epoch // LENGTH))
    assert Counter(found) == Counter(text for i, text in enumerate(stories) if i % 5 != 4)


@pytest.mark.parametrize("streaming", [False, True])
def test_samples_and_held_out_windows_do_not_depend_on_kind_or_streaming(streaming, tmp_path):
    documents = [f"document {i}" for i in range(200)]
    expected = prepared(tmp_path, source="text", path=str(write(tmp_path / "a.txt", documents)))
    for name in ("b.jsonl.gz", "c.parquet", "d.csv.zst"):
        path = write(tmp_path / name, documents)
        data = prepared(tmp_path, source="text", path=str(path), streaming=streaming)
        for i in range(300):
            assert torch.equal(data.train[i], expected.train[i])
        for i in range(3):
            assert torch.equal(data.validation[i], expected.validation[i])
        assert streaming or data.fingerprint == expected.fingerprint


def mixture(folder, weight=3.0):
    short = write(folder / "short.txt", [f"short {i}" for i in range(40)])
    long = write(folder / "long.jsonl", [f"long one number {i}" for i in range(700)])
    return {
        "short": MixedSourceConfig(source="text", path=str(short), weight=1.0),
        "long": MixedSourceConfig(source="text", path=str(long), weight=weight),
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_a_mixture_has_its_weights_as_shares_of_documents(streaming, tmp_path):
    sources = mixture(tmp_path)
    data = prepared(tmp_path, source="mixture", sources=sources, streaming=streaming)
    found = first_texts(data, 11_500)[:MIXTURE_BLOCK_SIZE]
    assert len(found) == MIXTURE_BLOCK_SIZE
    assert Counter(text.split()[0] for text in found) == {"short": 2500, "long": 7500}
    for part in range(0, MIXTURE_BLOCK_SIZE, 1000):  # and near them everywhere
        share = sum(text.startswith("short") for text in found[part : part + 1000]) / 1000
        assert share == pytest.approx(0.25, abs=0.06)
    short = [text for text in found if text.startswith("short")]
    for epoch in range(
        2500 // 32
    ):  # the shorter source begins its next epoch while the other goes on
        assert Counter(short[32 * epoch : 32 * (epoch + 1)]) == Counter(
            f"short {i}" for i in range(40) if i % 5 != 4
        )


def test_a_mixture_is_the_same_streamed_and_held_out_alike(tmp_path):
    sources = mixture(tmp_path)
    one = prepared(tmp_path, source="mixture", sources=sources)
    other = prepared(tmp_path, source="mixture", sources=sources, streaming=True)
    for i in range(3000):
        assert torch.equal(one.train[i], other.train[i])
    assert np.array_equal(one.validation_split.tokens, other.validation_split.tokens)
    assert one.validation_split.measure_first_documents(
        3 * LENGTH
    ) == other.validation_split.measure_first_documents(3 * LENGTH)
    again = prepared(tmp_path, source="mixture", sources=mixture(tmp_path, weight=1.0), seed=5)
    assert not all(torch.equal(one.train[i], again.train[i]) for i in range(20))


@pytest.mark.parametrize("source", ["embedded", "text", "mixture"])
def test_an_evaluation_scores_the_documents_that_training_holds_out(source, tmp_path):
    changes = {
        "embedded": {"documents": 60},
        "text": {"path": str(write(tmp_path / "x.parquet", [f"text {i}" for i in range(99)]))},
        "mixture": {"sources": mixture(tmp_path)},
    }[source]
    data = prepared(tmp_path, 10**6, source=source, **changes)
    settings = DataConfig(source=source, validation_every=5, **changes)
    scored = list(iter_evaluation_documents(settings, 5, "validation"))
    assert scored == texts_of(data.validation_split.tokens)[:-1]
    everything = list(iter_evaluation_documents(settings, 5, "all"))
    assert len(everything) == {"embedded": 60, "text": 99, "mixture": 740}[source]
    assert set(scored) < set(everything)


def test_an_evaluation_needs_settings_that_can_be(tmp_path):
    with pytest.raises(UserError, match=r"data\.sources=\{\}: data=mixture needs at least one"):
        iter_evaluation_documents(DataConfig(source="mixture"), 0, "all")


@given(
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    enough=st.integers(1, 300),
    seed=st.integers(0, 99),
)
def test_held_out_documents_come_once_each_until_there_are_enough(sizes, enough, seed):
    parts = [
        [(np.full(i % 3 + 1, 100 * part + i), i) for i in range(size)]
        for part, size in enumerate(sizes)
    ]
    counts = compute_block_counts({str(i): 1 + i for i in range(len(sizes))})
    found = collect_validation_split(parts, counts, seed, tokenizer, enough)
    everything = [document for part in parts for document in part]
    numbers = list(dict.fromkeys(found.tokens.tolist()))
    assert found.num_documents == len(numbers)
    assert found.document_bytes.tolist() == [number % 100 for number in numbers]
    assert found.ends.tolist() == np.cumsum([number % 100 % 3 + 1 for number in numbers]).tolist()
    for part in range(len(sizes)):
        of_part = [number for number in numbers if number // 100 == part]
        assert of_part == [100 * part + i for i in range(len(of_part))]
    if sum(len(tokens) for tokens, _ in everything) < enough:
        assert found.num_documents == len(everything)
    else:
        assert len(found.tokens) >= enough


@given(
    st.lists(st.floats(0.01, 10), min_size=1, max_size=6),
    st.integers(0, 99),
    st.integers(0, 10**6),
)
def test_every_block_of_a_mixture_has_the_weights_to_one_document(weights, seed, block):
    counts = compute_block_counts({str(i): weight for i, weight in enumerate(weights)})
    assert sum(counts) == MIXTURE_BLOCK_SIZE
    for count, weight in zip(counts, weights, strict=True):
        assert count == pytest.approx(MIXTURE_BLOCK_SIZE * weight / sum(weights), abs=1)
    assert np.bincount(mixture_order(seed, block, counts)).tolist() == counts


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), 1e-9])
def test_weights_that_are_no_shares(weight):
    with pytest.raises(UserError, match=r"data\.sources\.b\.weight="):
        compute_block_counts({"a": 1.0, "b": weight})


class Prefixed:
    """A tokenizer with ids that begin a text."""

    bos_token_ids = (7, 8)

    def __getattr__(self, name):
        return getattr(tokenizer, name)


def test_what_begins_a_text_precedes_every_document(tmp_path):
    settings = DataConfig(cache=str(tmp_path), documents=20, validation_every=5)
    sources, counts = open_sources(settings, 0)
    data = open_run_data(
        settings, Prefixed(), sources, counts,
        seed=0, sequence_length=LENGTH, validation_samples=1, listener=DataListener(),
    )  # fmt: skip
    starts = [0, *(np.flatnonzero(data.validation_split.tokens == tokenizer.eos_token_id)[:-1] + 1)]
    assert len(starts) == 4
    for start in starts:
        assert data.validation_split.tokens[start : start + 2].tolist() == [7, 8]
    assert data.train[0][:2].tolist() == [7, 8]
    plain = open_run_data(
        settings, tokenizer, sources, counts,
        seed=0, sequence_length=LENGTH, validation_samples=1, listener=DataListener(),
    )  # fmt: skip
    assert plain.fingerprint != data.fingerprint
    assert (
        plain.validation_split.document_bytes.tolist()
        == data.validation_split.document_bytes.tolist()
    )


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"source": "web"}, "data.source"),
        ({"documents": 0}, "data.documents"),
        ({"documents": 4}, "data.validation_every"),
        ({"documents": 10, "validation_every": 11}, "data.validation_every"),
        ({"source": "text"}, "data.path"),
        ({"source": "text", "path": ""}, "data.path"),
        ({"source": "text", "path": "missing.txt"}, "data.path"),
        ({"source": "text", "path": "short.txt"}, "data.validation_every"),
        ({"source": "text", "path": "short.txt", "sample_by": "word"}, "data.sample_by"),
        ({"source": "text", "path": "few.txt", "sample_by": "line"}, "data"),
        ({"source": "huggingface"}, "data.name"),
        (
            {"source": "mixture", "sources": {"a": MixedSourceConfig(source="text")}},
            "data.sources.a.path",
        ),
    ],
)
def test_settings_that_cannot_be_followed(changes, key, streaming, tmp_path, monkeypatch):
    (tmp_path / "short.txt").write_text("one\n\ntwo\n")
    (tmp_path / "few.txt").write_text("a\n" * 12)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        prepared(tmp_path, **({"streaming": streaming} | changes))
    assert caught.value.key == key


def test_a_blank_file_is_refused(tmp_path):
    (tmp_path / "blank.txt").write_text(" \n\n \n")
    with pytest.raises(UserError, match=r"blank\.txt: contains only white space"):
        prepared(tmp_path, source="text", path=str(tmp_path / "blank.txt"))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "library", "matters"),
    [
        ("a.txt", "tiktoken", True),
        ("a.txt", "pyarrow", False),
        ("a.txt.zst", "pyarrow", True),
        ("a.parquet", "pyarrow", True),
    ],
)
def test_another_version_of_what_reads_and_encodes_is_another_text(
    name, library, matters, streaming, tmp_path, monkeypatch
):
    path = write(tmp_path / name, [f"document {i}" for i in range(200)])
    settings = {"source": "text", "path": str(path), "streaming": streaming}
    before = prepared(tmp_path, **settings)
    monkeypatch.setattr(
        "growlm.data.preparation.version", lambda name: "0" if name == library else version(name)
    )
    after = prepared(tmp_path, **settings)
    if streaming:
        assert (after.fingerprint != before.fingerprint) == matters
    else:  # the tokens themselves are compared
        assert after.fingerprint == before.fingerprint
        assert len(list((tmp_path / "cache").glob("*/corpus.json"))) == 1 + matters


def test_a_stream_reads_no_more_for_validation_than_it_needs(tmp_path):
    path = write(tmp_path / "a.jsonl", [f"document {i}" for i in range(5000)])
    data = prepared(tmp_path, source="text", path=str(path), streaming=True)
    assert 3 * LENGTH < len(data.validation_split.tokens) < 4 * LENGTH + 20
    assert not (tmp_path / "cache").exists()


def test_documents_are_numbered_over_all_files(tmp_path):
    for name, first in (("a.txt", 0), ("b.jsonl", 7), ("c.parquet", 14)):
        write(tmp_path / name, [f"document {i}" for i in range(first, first + 7)])
    data = prepared(tmp_path, 1, source="text", path=str(tmp_path))
    assert texts_of(data.validation_split.tokens)[:3] == ["document 4", "document 9", "document 14"]


def test_embedded_data_imports_neither_lightning_nor_datasets():
    program = (
        "import sys; from growlm.data import embedded_documents, load_tokenizer; "
        "load_tokenizer('embedded').encode_batch(list(embedded_documents(0, 2))); "
        "print([name for name in ('lightning', 'datasets', 'pyarrow') if name in sys.modules])"
    )
    root = Path(growlm.__file__).parents[1]
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, check=True, text=True
    ).stdout
    assert output.strip() == "[]"


def test_the_first_documents_are_those_that_the_first_tokens_are_of():
    ends, sizes = np.array([5, 9, 20]), np.array([10, 20, 30])
    held_out = ValidationSplit(np.zeros(20, np.uint16), ends, sizes)
    found = [held_out.measure_first_documents(n) for n in (1, 5, 6, 9, 10, 20, 99)]
    assert found == [(5, 10)] * 2 + [(9, 30)] * 2 + [(20, 60)] * 3


def test_fewer_stories_are_the_beginning_of_more():
    assert list(islice(embedded_documents(3, 10), 5)) == list(embedded_documents(3, 5))
