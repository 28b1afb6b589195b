"""Documents, tokenizers and the samples that a run trains on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from growlm.data.corpus import TokenizedCorpus
from growlm.data.packing import PackedSamples, RankBatches, ValidationSamples
from growlm.data.preparation import DataListener, RunData, open_run_data, tokenize_source
from growlm.data.sources.document_sources import (
    DocumentSource,
    EmbeddedStories,
    TextFiles,
    embedded_documents,
)
from growlm.data.sources.source_factory import open_sources
from growlm.data.sources.text_files import find_text_files
from growlm.data.streaming import StreamedSamples
from growlm.data.synthetic.stories import generate_story
from growlm.data.tokenization.tokenizer import Tokenizer, load_tokenizer
from growlm.data.validation_split import ValidationSplit
from growlm.runtime.deprecation import renamed_attributes

if TYPE_CHECKING:
    from growlm.data.data_module import PackedDataModule

__all__ = [
    "DataListener",
    "DocumentSource",
    "EmbeddedStories",
    "PackedDataModule",
    "PackedSamples",
    "RankBatches",
    "RunData",
    "StreamedSamples",
    "TextFiles",
    "TokenizedCorpus",
    "Tokenizer",
    "ValidationSamples",
    "ValidationSplit",
    "embedded_documents",
    "find_text_files",
    "generate_story",
    "load_tokenizer",
    "open_run_data",
    "open_sources",
    "tokenize_source",
]


_renamed = renamed_attributes(
    __name__,
    {
        "HeldOut": "ValidationSplit",
        "HeldOutSamples": "ValidationSamples",
        "Source": "DocumentSource",
        "open_data": "open_run_data",
        "prepare_data": "tokenize_source",
        "story": "generate_story",
    },
)


def __getattr__(name: str) -> Any:
    # Lazy, because importing Lightning costs seconds and memory that commands with only a tokenizer can save.
    if name == "PackedDataModule":
        from growlm.data.data_module import PackedDataModule

        return PackedDataModule
    return _renamed(name)
