"""Corpora that tests make up: documents in a list, and their tokens as arrays."""

import json

import numpy as np

from growlm.data import load_tokenizer
from growlm.data.sources.document_sources import DocumentReader, DocumentSource
from growlm.data.streaming import StreamedDocuments, StreamedSamples
from growlm.data.token_stream import MixedDocuments, ShuffledDocuments
from growlm.data.tokenization.parallel_tokenization import concatenate_documents, tokenize_documents

tokenizer = load_tokenizer("bytes")


class ListReader(DocumentReader):
    def __init__(self, source, number):
        self.source, self.number = source, number

    def __next__(self):
        if self.number >= len(self.source.documents):
            raise StopIteration
        self.number += 1
        self.source.read_documents.append(self.number - 1)
        return self.source.documents[self.number - 1]

    def position(self):
        return self.number


class ListSource(DocumentSource):
    """Notes down which documents are read."""

    key = "data"
    name = "a list"

    def __init__(self, documents):
        self.documents = list(documents)
        self.read_documents = []

    def read(self, position=None):
        return ListReader(self, position or 0)

    def identity(self):
        return self.documents


def trained_on(documents, validation_every):
    """Those that are not held out."""
    return [text for number, text in enumerate(documents, start=1) if number % validation_every]


def shuffled(documents, window, seed, validation_every):
    """The row of a corpus in memory."""
    found = concatenate_documents(
        tokenize_documents(trained_on(documents, validation_every), tokenizer), tokenizer
    )
    return ShuffledDocuments(found.tokens, np.cumsum(found.lengths), window, seed)


def mixed(corpora, counts, window, seed, validation_every):
    rows = [shuffled(documents, window, seed, validation_every) for documents in corpora]
    return MixedDocuments(rows, counts, seed)


def stream(corpora, counts, length, window, seed, validation_every, progress=lambda *_: None):
    """The samples of sources that are read on the way."""
    streams = [
        StreamedDocuments(
            documents if isinstance(documents, DocumentSource) else ListSource(documents),
            tokenizer,
            window,
            validation_every,
            seed,
        )
        for documents in corpora
    ]
    return StreamedSamples(streams, counts, length, seed, progress)


def through_json(mark):
    return json.loads(json.dumps(mark))


def texts_of(tokens):
    """The documents of a row of tokens; the last may have been cut."""
    return tokenizer.decode(tokens).split("<|endoftext|>")
