"""Tokenized corpora on disk, each under a key of all that it depends on, so that a text is tokenized once.

`<folder>/<key>/` is what `corpus.py` describes. An entry is whole or not there: it is written under another name
and renamed. `<folder>/locks/<key>` is held by the process that writes it; others wait for it. An entry that is
damaged is let go of and made anew. Whatever else lies in the folder is left alone. `rm -r <folder>` empties it,
also while runs go on: they keep what they have mapped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from growlm.checkpoint.checkpoint_folder import atomic_folder
from growlm.data.corpus import CORPUS_FILE, CorpusWriter, TokenizedCorpus, open_corpus
from growlm.data.tokenization.parallel_tokenization import TokenizedDocuments
from growlm.runtime.errors import UserError
from growlm.storage.file_digests import FileDigestCache
from growlm.storage.locks import LockedError, acquire_lock
from growlm.storage.lru_directory import LRUDirectory

FOLDER_SETTING = "data.cache"
CACHE_FORMAT = 1
"""Of the files, and of what is done to a text; another number makes all of them anew."""
DIGESTS_FILE = "digests.json"
LOCK_POLL_INTERVAL_S = 0.3
"""Seconds between looks at whether another process has finished."""


@dataclass(frozen=True)
class TokenCache:
    """The folder, made when something is first written.

    Args:
        folder: Where.
        max_bytes: What is kept at most, but for what was asked for here, which is kept however large it is.
        tell: Called with what a person may want to know.
    """

    folder: Path
    max_bytes: int
    notify: Callable[[str], object]
    _in_use: set[str] = field(default_factory=set, init=False)
    _digests: FileDigestCache = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_digests", FileDigestCache(self.folder / DIGESTS_FILE))

    @property
    def _directory(self) -> LRUDirectory:
        return LRUDirectory(self.folder, self.max_bytes, marker_file=CORPUS_FILE)

    def get_or_create(
        self,
        key_parts: dict[str, Any],
        dtype: np.dtype[Any],
        validation_every: int,
        tokenize: Callable[[], Iterable[TokenizedDocuments]],
    ) -> TokenizedCorpus:
        """The corpus, from disk if it is there, or tokenized now.

        Args:
            depends_on: Plain JSON: everything that, if it were different, would make it another corpus.
            dtype: Of its token ids.
            validation_every: Documents n-1, 2n-1, ... of this n are held out.
            tokenize: Makes its documents.

        Raises:
            UserError: If a document cannot be read; no entry is left.
            DiskError: If it cannot be written; no entry is left.
        """
        parts = {"format": CACHE_FORMAT, "validation_every": validation_every, **key_parts}
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
        entry = self.folder / key
        self._in_use.add(key)
        if (corpus := self._open_valid(entry)) is not None:
            return corpus
        with self._wait_for_lock(key):
            self._digests.save()  # tokenizing may be killed
            if (corpus := self._open_valid(entry)) is None:  # not written while this one waited
                self._write(entry, parts, dtype, validation_every, tokenize())
                corpus = open_corpus(entry, FOLDER_SETTING)
        return corpus

    def evict_to_limit(self) -> None:
        """Let go of what is too much and not in use here, and of what killed processes left; save checksums."""
        self._digests.save()
        self._directory.evict_to_limit(self._in_use)
        for key, path in self._directory.iter_partials():
            with suppress(LockedError, OSError), acquire_lock(self.folder / "locks" / key):
                shutil.rmtree(path, ignore_errors=True)
                (self.folder / f".{key}.lock").unlink(missing_ok=True)

    def digest(self, path: Path) -> str:
        """Return a file's SHA-256; see `FileDigests`."""
        return self._digests.digest(path)

    def _open_valid(self, entry: Path) -> TokenizedCorpus | None:
        """The entry, if it is there and is what was written."""
        if not entry.is_dir():
            return None
        try:
            corpus = open_corpus(entry, FOLDER_SETTING)
            with suppress(OSError):
                os.utime(entry)  # used now
            return corpus
        except (UserError, OSError) as error:
            self.notify(f"warning: {error}; tokenized again")
            self._directory.remove_entry(entry.name)
            return None

    def _wait_for_lock(self, key: str) -> Any:
        """The lock for writing an entry, once nobody else has it; its file stays, others may be waiting for it."""
        path, told = self.folder / "locks" / key, False
        while True:
            try:  # the folder may be emptied meanwhile, and is made again
                path.parent.mkdir(parents=True, exist_ok=True)
                return acquire_lock(path)
            except LockedError as error:
                if not told:
                    self.notify(f"waiting for {error.owner}, which tokenizes the same text")
                told = True
                time.sleep(LOCK_POLL_INTERVAL_S)
            except OSError as error:
                allowed = f"cannot be written to: {error.strerror}"
                raise UserError(FOLDER_SETTING, self.folder, allowed) from error

    def _write(
        self,
        entry: Path,
        parts: dict[str, Any],
        dtype: np.dtype[Any],
        validation_every: int,
        batches: Iterable[TokenizedDocuments],
    ) -> None:
        with (
            atomic_folder(entry) as (partial, digests),
            CorpusWriter(partial, dtype, validation_every) as writer,
        ):
            for batch in batches:
                writer.write(batch)
            digests |= writer.finish({"depends_on": parts})
