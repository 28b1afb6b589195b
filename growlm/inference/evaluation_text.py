"""Tokenize the documents of an evaluation, and count their bytes."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from growlm.config.schema import DataConfig
from growlm.config.validation import check_data_config
from growlm.data import DocumentSource, open_sources
from growlm.data.preparation import describe_selection
from growlm.data.sources.source_factory import open_source
from growlm.data.tokenization.huggingface_tokenizer import HuggingFaceTokenizer
from growlm.data.tokenization.parallel_tokenization import find_unknown, loses_text
from growlm.data.tokenization.tokenizer import Tokenizer
from growlm.data.unknown_limit import UnknownTally
from growlm.data.validation_split import interleave
from growlm.runtime.errors import UserError

BATCH_DOCUMENTS = 1000


@dataclass(frozen=True, eq=False)
class EvaluationTokens:
    """Documents one after another, each followed by the end of text, as in training.

    Attributes:
        tokens: Token ids, (N,). The first is only context: a token that begins a text, or else an end of text.
        context_mask: Which tokens begin a text and so are not predicted, (N,), bool; None if there are none.
        num_documents: Number of documents, counting a truncated one.
        num_bytes: Length of the documents in UTF-8, without the tokens that begin and end them.
        unknown: What of them the tokenizer has no token for.
    """

    tokens: np.ndarray
    context_mask: np.ndarray | None
    num_documents: int
    num_bytes: int
    unknown: UnknownTally = field(default_factory=UnknownTally)

    @property
    def num_encoded_bytes(self) -> int:
        """Number of bytes that the tokens stand for: those that bits per byte count."""
        return self.num_bytes - self.unknown.num_unknown_bytes


def iter_evaluation_documents(
    settings: DataConfig,
    seed: int,
    split: str,
    notify: Callable[[str], object] = lambda note: None,
) -> Iterator[str]:
    """Return an iterator over the documents of a data group.

    Args:
        settings: Settings of the data group.
        seed: Seed of the embedded stories.
        split: `all`, or `validation` for those that training on this data holds out, or for the text that
            `data.validation` names.
        notify: Function called with notes for the user, such as which files are not read, and how many documents
            the settings left out.

    Raises:
        UserError: If the documents cannot be read, at the call or when one is reached.
    """
    check_data_config(settings)
    if settings.evaluation_sets:
        name = next(iter(settings.evaluation_sets))
        reason = (
            "only training reads these; to score one, give it as data=text data.path=FILE split=all"
        )
        raise UserError("data.evaluation_sets", name, reason)
    if settings.validation.is_given and split == "validation":
        text = settings.validation.resolve(settings, "data.validation")
        given = settings.validation.given
        opened = open_source(text, "data.validation", seed, settings.streaming, given)
        sources, counts, split = {"data": opened}, [1], "all"
    else:
        sources, counts = open_sources(settings, seed)
    validation_every = settings.validation_every

    for source in sources.values():
        for note in source.notes:
            notify(note)

    def select(source: DocumentSource) -> Iterator[str]:
        reader = source.read()
        for index, text in enumerate(reader):
            if split == "all" or index % validation_every == validation_every - 1:
                yield text
        if reader.selection:
            notify(f"{source.name}: {describe_selection(reader.selection, source.key)}")

    return interleave([select(source) for source in sources.values()], counts, seed)


def tokenize_for_evaluation(
    documents: Iterable[str],
    tokenizer: Tokenizer,
    max_tokens: int | None = None,
    progress: Callable[[int], object] = lambda done: None,
    max_unknown_fraction: float = 1.0,
) -> EvaluationTokens:
    """Tokenize documents into one array in memory, 4 bytes per token.

    Args:
        documents: Documents, read as far as needed.
        tokenizer: Tokenizer to encode them with.
        max_tokens: Largest number of tokens to predict; the last document is truncated there.
        progress: Function called now and then with the number of documents read.
        max_unknown_fraction: Largest fraction of their bytes that the tokenizer may have no token for.

    Raises:
        UserError: If there is no document, or the tokenizer has no token for more of the text, or for any of it.
    """
    bos_ids = list(tokenizer.bos_token_ids)
    ids, context_flags = (
        array("I", [] if bos_ids else [tokenizer.eos_token_id]),
        bytearray(not bos_ids),
    )
    num_documents = num_bytes = num_predicted = 0
    remaining, unknown = iter(documents), UnknownTally()
    while batch := list(islice(remaining, BATCH_DOCUMENTS)):
        for text, encoded in zip(batch, tokenizer.encode_batch(batch), strict=True):
            kept_ids = [*encoded, tokenizer.eos_token_id]
            size = len(text.encode("utf-8", "replace"))
            if max_tokens is not None and num_predicted + len(kept_ids) > max_tokens:
                kept_ids = kept_ids[: max_tokens - num_predicted]
                text = _truncate(text, kept_ids, tokenizer)
                size = len(text.encode("utf-8", "replace"))
            if not kept_ids:
                break
            parts = find_unknown(text, kept_ids, tokenizer)
            unknown.add(size, sum(parts.values()), parts)
            ids.extend(bos_ids)
            ids.extend(kept_ids)
            context_flags += b"\1" * len(bos_ids) + b"\0" * len(kept_ids)
            num_documents, num_bytes, num_predicted = (
                num_documents + 1,
                num_bytes + size,
                num_predicted + len(kept_ids),
            )
        progress(num_documents)
        if max_tokens is not None and num_predicted >= max_tokens:
            break
    if not num_bytes:
        raise UserError("data", "no text", "there is nothing to evaluate on")
    unknown.check(max_unknown_fraction, "the text")
    if unknown.num_unknown_bytes == num_bytes:
        raise UserError("data", "no text", f"there is nothing to evaluate on: {unknown.describe()}")
    return EvaluationTokens(
        np.asarray(ids),
        np.frombuffer(bytes(context_flags), dtype=bool) if bos_ids else None,
        num_documents,
        num_bytes,
        unknown,
    )


def _truncate(text: str, ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """Return the beginning of a text that its first ids stand for."""
    if not ids:
        return ""
    if isinstance(tokenizer, HuggingFaceTokenizer) and loses_text(tokenizer):
        _, spans = tokenizer.encode_with_spans(text)
        return text[: max((end for _, end in spans[: len(ids)]), default=0)]
    return tokenizer.decode(ids)
