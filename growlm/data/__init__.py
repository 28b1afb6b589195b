"""Documents, tokenizers, and the samples that a run reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from growlm.data.corpora import embedded_documents, find_text_files, text_documents
from growlm.data.packing import PackedSamples, TokenizedCorpus, phase_indices, tokenize_documents
from growlm.data.prepare import prepare_data
from growlm.data.stories import story
from growlm.data.tokenizers import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from growlm.data.data_module import PackedDataModule

__all__ = [
    "PackedDataModule",
    "PackedSamples",
    "TokenizedCorpus",
    "Tokenizer",
    "embedded_documents",
    "find_text_files",
    "load_tokenizer",
    "phase_indices",
    "prepare_data",
    "story",
    "text_documents",
    "tokenize_documents",
]


def __getattr__(name: str) -> Any:
    # Commands that only need a tokenizer would pay for Lightning, in seconds and in memory.
    if name == "PackedDataModule":
        from growlm.data.data_module import PackedDataModule

        return PackedDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
