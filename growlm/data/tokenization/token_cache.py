"""An on-disk cache of tokenized corpora, keyed by everything they depend on, so that a text is tokenized once.

`<folder>/<key>/` is a corpus as described in `corpus.py`. An entry is either complete or absent: it is written
under another name and renamed. `<folder>/locks/<key>` is held by the process that writes it; others wait for
it. A damaged entry is removed and made again. Other files in the folder are left alone. `rm -r <folder>`
empties the cache, even during runs, which keep the files they have mapped.
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
"""Version of the file format and of the processing of texts; changing it invalidates all entries."""
DIGESTS_FILE = "digests.json"
LOCK_POLL_INTERVAL_S = 0.3
"""Seconds between checks whether another process has finished."""


@dataclass(frozen=True)
class TokenCache:
    """A cache folder of tokenized corpora, which is created on the first write.

    Args:
        folder: Path of the cache.
        max_bytes: Size limit. Entries used by this process are kept however large they are.
        notify: Function called with messages for the user.
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
        *,
        record: Callable[[], dict[str, Any]] = dict,
        earlier: tuple[dict[str, Any], Callable[[], bool]] | None = None,
    ) -> TokenizedCorpus:
        """Return the corpus, from disk if it is cached, or tokenized now.

        Args:
            key_parts: Everything that the corpus depends on, as plain JSON.
            dtype: Dtype of its token ids.
            validation_every: Every n-th document (n-1, 2n-1, ...) goes into the validation split.
            tokenize: Function that tokenizes its documents.
            record: Function called after that, for more fields of `corpus.json`.
            earlier: `key_parts` of an earlier version of growlm, and a function that tells whether it read these
                documents; if so, its entry is taken over.

        Raises:
            UserError: If a document cannot be read; no entry is left.
            DiskError: If it cannot be written; no entry is left.
        """
        parts = {"format": CACHE_FORMAT, "validation_every": validation_every, **key_parts}
        key = _make_key(parts)
        entry = self.folder / key
        self._in_use.add(key)
        if (corpus := self._open_valid(entry)) is not None:
            return corpus
        with self._wait_for_lock(key):
            self._digests.save()  # before tokenizing, which takes long and may be killed
            if earlier is not None and not entry.exists():
                earlier_key = _make_key(parts | earlier[0])
                if (self.folder / earlier_key).is_dir() and earlier[1]():
                    with suppress(OSError):  # removed meanwhile
                        (self.folder / earlier_key).rename(entry)
            if (
                corpus := self._open_valid(entry)
            ) is None:  # not written by another process meanwhile
                self._write(entry, parts, dtype, validation_every, tokenize(), record)
                corpus = open_corpus(entry, FOLDER_SETTING)
        return corpus

    def evict_to_limit(self) -> None:
        """Remove unused entries over the limit, and leftovers of killed processes; save checksums."""
        self._digests.save()
        self._directory.evict_to_limit(self._in_use)
        for key, path in self._directory.iter_partials():
            with suppress(LockedError, OSError), acquire_lock(self.folder / "locks" / key):
                shutil.rmtree(path, ignore_errors=True)
                (self.folder / f".{key}.lock").unlink(missing_ok=True)

    def digest(self, path: Path) -> str:
        """Return a file's SHA-256; see `FileDigestCache`."""
        return self._digests.digest(path)

    def _open_valid(self, entry: Path) -> TokenizedCorpus | None:
        """Return the entry if it exists and is intact, else None."""
        if not entry.is_dir():
            return None
        try:
            corpus = open_corpus(entry, FOLDER_SETTING)
            with suppress(OSError):
                os.utime(entry)  # mark as used for the LRU order
            return corpus
        except (UserError, OSError) as error:
            self.notify(f"warning: {error}; tokenizing again")
            self._directory.remove_entry(entry.name)
            return None

    def _wait_for_lock(self, key: str) -> Any:
        """Wait for the lock for writing an entry; its file is never removed, since others may wait for it."""
        path, notified = self.folder / "locks" / key, False
        while True:
            try:  # the folder may have been deleted meanwhile, so it is created each time
                path.parent.mkdir(parents=True, exist_ok=True)
                return acquire_lock(path)
            except LockedError as error:
                if not notified:
                    self.notify(f"waiting for {error.owner}, which is tokenizing the same text")
                notified = True
                time.sleep(LOCK_POLL_INTERVAL_S)
            except OSError as error:
                reason = f"cannot be written to: {error.strerror}"
                raise UserError(FOLDER_SETTING, self.folder, reason) from error

    def _write(
        self,
        entry: Path,
        parts: dict[str, Any],
        dtype: np.dtype[Any],
        validation_every: int,
        batches: Iterable[TokenizedDocuments],
        record: Callable[[], dict[str, Any]],
    ) -> None:
        with (
            atomic_folder(entry) as (partial, digests),
            CorpusWriter(partial, dtype, validation_every) as writer,
        ):
            for batch in batches:
                writer.write(batch)
            digests |= writer.finish({"depends_on": parts, **record()})


def _make_key(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
