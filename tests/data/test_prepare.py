"""From the data settings to a corpus, and the settings that cannot be followed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import growlm
from growlm.data import embedded_documents, load_tokenizer, prepare_data, tokenize_documents
from growlm.errors import UserError

tokenizer = load_tokenizer("embedded")
EMBEDDED = {
    "source": "embedded",
    "path": None,
    "sample_by": "line",
    "documents": 20,
    "seed": 5,
    "validation_every": 10,
    "tokenizer": tokenizer,
}


def test_embedded_stories():
    progress: list[int] = []
    corpus = prepare_data(**EMBEDDED, progress=progress.append)
    expected = tokenize_documents(embedded_documents(5, 20), tokenizer, 10, None)
    assert np.array_equal(corpus.train, expected.train)
    assert np.array_equal(corpus.validation, expected.validation)
    assert (corpus.train_documents, corpus.validation_documents) == (18, 2)
    assert progress == [20]


def test_text_files_are_read_whole(tmp_path):
    (tmp_path / "x.txt").write_text("".join(f"line {i}\n" for i in range(30)))
    corpus = prepare_data(**(EMBEDDED | {"source": "text", "path": str(tmp_path)}))
    assert (corpus.train_documents, corpus.validation_documents) == (27, 3)
    assert tokenizer.decode(corpus.validation) == (
        "line 9<|endoftext|>line 19<|endoftext|>line 29<|endoftext|>"
    )


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"source": "web"}, "data.source"),
        ({"documents": 0}, "data.documents"),
        ({"documents": 9}, "data.validation_every"),
        ({"validation_every": 21}, "data.validation_every"),
        ({"validation_every": 1}, "data.validation_every"),
        ({"source": "text"}, "data.path"),
        ({"source": "text", "path": ""}, "data.path"),
        ({"source": "text", "path": "missing.txt"}, "data.path"),
        ({"source": "text", "path": "blank.txt"}, "data.path"),
        ({"source": "text", "path": "short.txt"}, "data.validation_every"),
        ({"source": "text", "path": "short.txt", "sample_by": "word"}, "data.sample_by"),
    ],
)
def test_settings_that_cannot_be_followed(changes, key, tmp_path, monkeypatch):
    (tmp_path / "blank.txt").write_text(" \n\n \n")
    (tmp_path / "short.txt").write_text("one\ntwo\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        prepare_data(**(EMBEDDED | changes))
    assert caught.value.key == key


def test_embedded_data_imports_neither_lightning_nor_datasets():
    program = (
        "import sys; from growlm.data import embedded_documents, load_tokenizer; "
        "load_tokenizer('embedded').encode_batch(list(embedded_documents(0, 2))); "
        "print([name for name in ('lightning', 'datasets') if name in sys.modules])"
    )
    root = Path(growlm.__file__).parents[1]
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, check=True, text=True
    ).stdout
    assert output.strip() == "[]"
