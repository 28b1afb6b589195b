"""Documents, tokenizers, and the samples that a run reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from growlm.data.corpus import TokenizedCorpus
from growlm.data.packing import HeldOutSamples, PackedSamples, RankBatches
from growlm.data.preparation import DataListener, RunData, open_data, prepare_data
from growlm.data.sources.document_sources import (
    EmbeddedStories,
    Source,
    TextFiles,
    embedded_documents,
)
from growlm.data.sources.source_factory import open_sources
from growlm.data.sources.text_files import find_text_files
from growlm.data.streaming import StreamedSamples
from growlm.data.synthetic.stories import story
from growlm.data.tokenization.tokenizer import Tokenizer, load_tokenizer
from growlm.data.validation_split import HeldOut

if TYPE_CHECKING:
    from growlm.data.data_module import PackedDataModule

__all__ = [
    "DataListener",
    "EmbeddedStories",
    "HeldOut",
    "HeldOutSamples",
    "PackedDataModule",
    "PackedSamples",
    "RankBatches",
    "RunData",
    "Source",
    "StreamedSamples",
    "TextFiles",
    "TokenizedCorpus",
    "Tokenizer",
    "embedded_documents",
    "find_text_files",
    "load_tokenizer",
    "open_data",
    "open_sources",
    "prepare_data",
    "story",
]


def __getattr__(name: str) -> Any:
    # Commands that only need a tokenizer would pay for Lightning, in seconds and in memory.
    if name == "PackedDataModule":
        from growlm.data.data_module import PackedDataModule

        return PackedDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
