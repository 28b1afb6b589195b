"""From the data settings to a tokenized corpus."""

from __future__ import annotations

from collections.abc import Callable

from growlm.data.corpora import embedded_documents, text_documents
from growlm.data.packing import TokenizedCorpus, tokenize_documents
from growlm.data.tokenizers import Tokenizer
from growlm.errors import UserError

SOURCES = ("embedded", "text")


def prepare_data(
    *,
    source: str,
    path: str | None,
    sample_by: str,
    documents: int,
    seed: int,
    validation_every: int,
    tokenizer: Tokenizer,
    progress: Callable[[int], None] | None = None,
) -> TokenizedCorpus:
    """Read and tokenize the documents of a run.

    Args:
        source: `embedded` (generated stories) or `text` (files of the user's).
        path: File, folder or glob pattern; `text` needs it, `embedded` does not look at it.
        sample_by: What a document of a text file is: `line`, `paragraph` or `document`.
        documents: Number of embedded stories; `text` reads all there is.
        seed: Which embedded stories.
        validation_every: Every n-th document is held out.
        tokenizer: What encodes them.
        progress: Called with the number of documents done, after every thousand of them.

    Raises:
        UserError: If a setting is out of bounds, no text can be read, or no document is held out.
    """
    if source == "embedded":
        if documents < 1:
            raise UserError("data.documents", documents, "must be at least 1")
        texts = embedded_documents(seed, documents)
    elif source == "text":
        if path is None:
            raise UserError("data.path", path, "must name the text files if data.source=text")
        texts = text_documents(path, sample_by)
    else:
        raise UserError("data.source", source, f"must be one of {', '.join(SOURCES)}")
    corpus = tokenize_documents(texts, tokenizer, validation_every, progress)
    if corpus.train_documents == 0:
        raise UserError("data.path", path, "holds nothing but white space")
    if corpus.validation_documents == 0:
        remedy = "a finer data.sample_by" if source == "text" else "more data.documents"
        raise UserError(
            "data.validation_every",
            validation_every,
            f"holds out none of {corpus.train_documents} document(s); use a smaller value or {remedy}",
        )
    return corpus
