"""Which files a path stands for, of which kind each is, and what tells it from another.

A kind is told by the file's name: `.jsonl`, `.csv`, `.parquet`, anything else is plain text; all but parquet may
be compressed, `.gz` or `.zst`.
"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path

from growlm.runtime.errors import UserError
from growlm.storage.input_files import open_input_file, resolve_regular_file

KIND_BY_SUFFIX = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
"""By ending. What is named but has another ending is read as text."""
FOLDER_SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet")
"""Endings that are looked for in a folder; a `.json` there is more often a setting than a corpus."""
COMPRESSION_SUFFIXES = (".gz", ".zst")


@dataclass(frozen=True)
class TextFile:
    """A file to read documents from.

    Attributes:
        path: Absolute.
        kind: `text`, `jsonl`, `csv` or `parquet`.
        compression: `.gz`, `.zst` or nothing.
    """

    path: Path
    kind: str
    compression: str

    def identity(self) -> tuple[str, int, int]:
        """Name, bytes, and time of the last change in nanoseconds: what identifies it without reading it."""
        stat = self.path.stat()
        return self.path.name, stat.st_size, stat.st_mtime_ns


def find_text_files(path: str, key: str = "data.path") -> list[TextFile]:
    """Find the files a path stands for, and check without reading them that they can be read.

    Args:
        path: A file, a folder (every readable kind in and below it) or a glob pattern (`**`: any depth).
        key: What the user calls it, for the message.

    Returns:
        Files in the order of their absolute paths; empty and hidden ones are left out.

    Raises:
        UserError: If that leaves no file, or one of them cannot be opened.
    """
    if not path.strip():
        raise UserError(key, repr(path), "must be a text file, a folder or a glob pattern")
    named = Path(path).expanduser()
    if named.exists() and not named.is_dir():
        resolve_regular_file(named, key, root=None)
    pattern = str(named) if not named.exists() else glob.escape(str(named))
    if named.is_dir():
        pattern = os.path.join(pattern, "**", "*")
    found = (Path(match).absolute() for match in glob.glob(pattern, recursive=True))
    files = sorted(file for file in found if file.is_file())
    if named.is_dir():
        files = [file for file in files if _split_suffixes(file)[0] in FOLDER_SUFFIXES]
    if not files:
        readable = ", ".join(f"*{ending}" for ending in FOLDER_SUFFIXES)
        wanted = f"no {readable} file in this folder" if named.is_dir() else "no such file"
        raise UserError(key, path, f"{wanted}; must be a text file, a folder or a glob")
    for file in files:
        try:
            open_input_file(file, key, root=None).close()
        except UserError as error:
            reason = error.reason.removeprefix("cannot be read: ")
            raise UserError(key, path, f"cannot read {file}: {reason}") from None
    filled = [_make_text_file(file, key) for file in files if file.stat().st_size > 0]
    if not filled:
        raise UserError(key, path, f"{len(files)} file(s), all empty; must hold text")
    return filled


def _make_text_file(path: Path, key: str) -> TextFile:
    ending, compression = _split_suffixes(path)
    if ending == ".parquet" and compression:
        raise UserError(key, path, "parquet is compressed inside; unpack the file around it")
    return TextFile(path, KIND_BY_SUFFIX.get(ending, "text"), compression)


def _split_suffixes(path: Path) -> tuple[str, str]:
    """`a.jsonl.gz` -> `.jsonl`, `.gz`."""
    name = path.name.lower()
    compression = next((c for c in COMPRESSION_SUFFIXES if name.endswith(c)), "")
    return os.path.splitext(name.removesuffix(compression))[1], compression
