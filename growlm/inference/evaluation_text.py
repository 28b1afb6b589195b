"""The documents of an evaluation as one row of tokens, and how many bytes of text they are."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from growlm.config.schema import DataConfig
from growlm.config.validation import check_data_config
from growlm.data import DocumentSource, open_sources
from growlm.data.tokenization.tokenizer import Tokenizer
from growlm.data.validation_split import interleave
from growlm.runtime.errors import UserError

BATCH_DOCUMENTS = 1000


@dataclass(frozen=True, eq=False)
class EvaluationTokens:
    """Documents one after another, each followed by the end of text, as in training.

    Attributes:
        tokens: Token ids, (N,). The first is only there to be read: what begins a text, or else an end of text.
        given: Which tokens begin a text and so are not the model's to predict, (N,), bool; None where none does.
        num_documents: In all or in part.
        num_bytes: Their length in UTF-8; what begins and ends a text has none.
    """

    tokens: np.ndarray
    context_mask: np.ndarray | None
    num_documents: int
    num_bytes: int


def iter_evaluation_documents(settings: DataConfig, seed: int, split: str) -> Iterator[str]:
    """The documents of a data group.

    Args:
        settings: The group.
        seed: Which embedded stories.
        split: `all`, or `validation` for those that training on this data holds out.

    Raises:
        UserError: If they cannot be read, at the call or on reaching one.
    """
    check_data_config(settings)
    sources, counts = open_sources(settings, seed)
    every = settings.validation_every

    def chosen(source: DocumentSource) -> Iterator[str]:
        texts = enumerate(source.read())
        return (t for i, t in texts if split == "all" or i % every == every - 1)

    return interleave([chosen(source) for source in sources.values()], counts, seed)


def tokenize_for_evaluation(
    documents: Iterable[str],
    tokenizer: Tokenizer,
    max_tokens: int | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> EvaluationTokens:
    """Tokenize documents into a row, which is held in memory, 4 bytes a token.

    Args:
        documents: Read as far as needed.
        tokenizer: What encodes them.
        limit: Tokens to be predicted, at most; the last document is cut there.
        progress: Called with the number of documents read, now and then.

    Raises:
        UserError: If there is no document.
    """
    begin = list(tokenizer.bos_token_ids)
    ids, given = array("I", [] if begin else [tokenizer.eos_token_id]), bytearray(not begin)
    num_documents = num_bytes = wanted = 0
    remaining = iter(documents)
    while batch := list(islice(remaining, BATCH_DOCUMENTS)):
        for text, encoded in zip(batch, tokenizer.encode_batch(batch), strict=True):
            kept = [*encoded, tokenizer.eos_token_id]
            size = len(text.encode("utf-8", "replace"))
            if max_tokens is not None and wanted + len(kept) > max_tokens:
                kept = kept[: max_tokens - wanted]
                size = len(tokenizer.decode(kept).encode("utf-8", "replace")) if kept else 0
            if not kept:
                break
            ids.extend(begin)
            ids.extend(kept)
            given += b"\1" * len(begin) + b"\0" * len(kept)
            num_documents, num_bytes, wanted = (
                num_documents + 1,
                num_bytes + size,
                wanted + len(kept),
            )
        progress(num_documents)
        if max_tokens is not None and wanted >= max_tokens:
            break
    if not num_bytes:
        raise UserError("data", "no text", "there is nothing to evaluate on")
    return EvaluationTokens(
        np.asarray(ids),
        np.frombuffer(bytes(given), dtype=bool) if begin else None,
        num_documents,
        num_bytes,
    )
