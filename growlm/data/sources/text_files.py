"""Find the text files that a path stands for, and each file's kind and identity.

The kind follows from the file's name: `.jsonl`, `.csv`, `.parquet` and so on; anything else is plain text. All but
parquet may be compressed.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from growlm.data.sources.compression import COMPRESSION_SUFFIXES
from growlm.runtime.errors import UserError
from growlm.storage.input_files import open_input_file, resolve_regular_file

KIND_BY_SUFFIX = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
"""Kind of file by suffix. A file that is named explicitly with any other suffix is read as text."""
FOLDER_SUFFIXES = tuple(suffix for suffix in KIND_BY_SUFFIX if suffix != ".json")
"""Suffixes that are searched for in a folder; a `.json` there is more often a setting than a corpus."""
ARCHIVE_SUFFIXES = (".tar", ".tgz", ".tbz2", ".txz", ".zip", ".7z", ".rar")
DELIMITER_NAMES = {"\t": "tab"}
"""Delimiters that are hard to write, and their names in settings."""
MAX_NAMED_FILES = 4
"""Number of files that a note names."""


@dataclass(frozen=True)
class TextFile:
    """A file to read documents from.

    Attributes:
        path: Absolute path.
        kind: `text`, `jsonl`, `csv`, `tsv` or `parquet`.
        compression: One of `COMPRESSION_SUFFIXES`, or an empty string.
    """

    path: Path
    kind: str
    compression: str

    def identity(self) -> tuple[str, int, int]:
        """Return name, size in bytes and modification time in nanoseconds, which identify an unread file."""
        stat = self.path.stat()
        return self.path.name, stat.st_size, stat.st_mtime_ns


@dataclass(frozen=True)
class FoundFiles:
    """What a path stands for.

    Attributes:
        files: Files to read.
        notes: For each reason why files are left out, a sentence with their number and the first names.
    """

    files: list[TextFile]
    notes: tuple[str, ...]


def find_text_files(path: str, key: str = "data.path") -> list[TextFile]:
    """Find the files a path stands for, and check that they can be opened.

    Args:
        path: File, folder (every readable kind in and below it) or glob pattern (`**`: any depth).
        key: Setting that names the path, for error messages.

    Returns:
        Files in the order of their absolute paths, without empty and hidden ones.

    Raises:
        UserError: If no file is left, or one of them cannot be opened.
    """
    return search_text_files(path, key).files


def search_text_files(path: str, key: str = "data.path") -> FoundFiles:
    """Find files as `find_text_files` does, and note which ones are left out.

    Raises:
        UserError: If no file is left, or one of them cannot be opened.
    """
    if not path.strip():
        raise UserError(key, repr(path), "must be a text file, a folder or a glob pattern")
    named = Path(path).expanduser()
    if named.exists() and not named.is_dir():
        resolve_regular_file(named, key, root=None)
    matches: Iterator[Path]
    if named.is_dir():
        matches = iter(list_files(named))
    else:
        matches = iter([named]) if named.exists() else map(Path, _expand_glob(str(named)))
    found = sorted(match.absolute() for match in matches)
    files, others = [file for file in found if file.is_file()], []
    readable = ", ".join(FOLDER_SUFFIXES)
    notes = []
    if named.is_dir():
        others = [file for file in files if _split_suffixes(file)[0] not in FOLDER_SUFFIXES]
        files = [file for file in files if _split_suffixes(file)[0] in FOLDER_SUFFIXES]
        reason = f"in a folder, only {readable} are; name others by themselves or by a glob"
        notes += note_left_out(path, others, "not read", reason)
    elif "**" not in path:
        others = [file for file in found if file.is_dir()]
        notes += note_left_out(path, others, "not searched", "they are folders (** searches them)")
    if not files:
        problem = f"no {readable} file in this folder" if named.is_dir() else "no such file"
        there = f", only {_list_names(others)}" if others else ""
        raise UserError(key, path, f"{problem}{there}; must be a text file, a folder or a glob")
    for file in files:
        try:
            open_input_file(file, key, root=None).close()
        except UserError as error:
            reason = error.reason.removeprefix("cannot be read: ")
            raise UserError(key, path, f"cannot read {file}: {reason}") from None
    empty = [file for file in files if file.stat().st_size == 0]
    if len(empty) == len(files):
        raise UserError(key, path, f"{len(files)} file(s), all empty; must hold text")
    notes += note_left_out(path, empty, "not read", "they are empty")
    nonempty = sorted(set(files) - set(empty))
    return FoundFiles([_make_text_file(file, key) for file in nonempty], tuple(notes))


def list_files(folder: Path) -> list[Path]:
    """Return the files in and below a folder, without hidden ones, sorted."""
    return sorted(Path(root, name) for root, names in _walk(str(folder)) for name in names)


def note_left_out(path: str, files: Sequence[Path], what: str, reason: str) -> list[str]:
    """Return a note on files that are left out, if there are any."""
    if not files:
        return []
    return [f"{path}: {len(files):,} found but {what}, {_list_names(files)}: {reason}"]


def _list_names(files: Sequence[Path]) -> str:
    names = ", ".join(file.name for file in files[:MAX_NAMED_FILES])
    return names + (" ..." if len(files) > MAX_NAMED_FILES else "")


def _walk(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Yield every folder in and below one, with its files' names, without hidden ones.

    Links are followed, but no folder is visited twice: links may lead in a circle.
    """
    visited: set[tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        stat = os.stat(root)
        if (stat.st_dev, stat.st_ino) in visited:
            folders.clear()
            continue
        visited.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield root, [name for name in files if not name.startswith(".")]


def _expand_glob(pattern: str) -> Iterator[str]:
    """Yield what matches a pattern, each path once; `**` stands for folders as `_walk` finds them."""
    before, deep, after = pattern.partition("**")
    if not deep:
        yield from glob.iglob(pattern)
        return
    found: set[str] = set()
    for start in glob.glob(before) if before else ["."]:
        for root, _ in _walk(start):
            below = os.path.join(glob.escape(root), after.lstrip("/") or "*")
            found.update(map(os.path.normpath, _expand_glob(below)))
    yield from found


def _make_text_file(path: Path, key: str) -> TextFile:
    suffix, compression = _split_suffixes(path)
    if suffix == ".parquet" and compression:
        raise UserError(key, path, "parquet has its own compression; decompress the file first")
    if suffix in ARCHIVE_SUFFIXES:
        raise UserError(key, path, "is an archive of files; unpack it, and name the folder")
    return TextFile(path, KIND_BY_SUFFIX.get(suffix, "text"), compression)


def _split_suffixes(path: Path) -> tuple[str, str]:
    """Split off the suffixes: `a.jsonl.gz` gives (`.jsonl`, `.gz`)."""
    name = path.name.lower()
    compression = next((c for c in COMPRESSION_SUFFIXES if name.endswith(c)), "")
    return os.path.splitext(name.removesuffix(compression))[1], compression
