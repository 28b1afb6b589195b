"""Where documents come from: the embedded stories, or the user's text files."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from growlm.data.stories import story
from growlm.errors import UserError

SAMPLE_BY = ("line", "paragraph", "document")


def embedded_documents(seed: int, count: int) -> Iterator[str]:
    """The first `count` stories of the embedded corpus; fewer are the beginning of more."""
    return (story(seed, index) for index in range(count))


def find_text_files(path: str) -> list[Path]:
    """Find the text files a path stands for, and check without reading them that they can be read.

    Args:
        path: A file, a folder (every `*.txt` in and below it) or a glob pattern (`**`: any depth).

    Returns:
        Absolute paths in sorted order; empty and hidden files are left out.

    Raises:
        UserError: If that leaves no file, or one of them cannot be opened.
    """
    if not path.strip():
        raise UserError("data.path", repr(path), "must be a text file, a folder or a glob pattern")
    named = Path(path).expanduser()
    pattern = str(named) if not named.exists() else glob.escape(str(named))
    if named.is_dir():
        pattern = os.path.join(pattern, "**", "*.txt")
    found = (Path(match).absolute() for match in glob.glob(pattern, recursive=True))
    files = sorted(file for file in found if file.is_file())
    if not files:
        wanted = "no *.txt file in this folder" if named.is_dir() else "no such file"
        raise UserError("data.path", path, f"{wanted}; must be a text file, a folder or a glob")
    for file in files:
        try:
            file.open("rb").close()
        except OSError as error:
            raise UserError("data.path", path, f"cannot read {file}: {error.strerror}") from None
    filled = [file for file in files if file.stat().st_size > 0]
    if not filled:
        raise UserError("data.path", path, f"{len(files)} file(s), all empty; must hold text")
    return filled


def text_documents(path: str, sample_by: str) -> Iterator[str]:
    """Documents of text files, read as they are asked for, through the `datasets` library.

    Args:
        path: As for `find_text_files`, which checks it before anything is read.
        sample_by: What a document is: a `line`, a `paragraph` (empty lines between them) or a whole
            file as one `document`. Documents of nothing but white space are left out.

    Returns:
        An iterator over the documents, files in sorted order.

    Raises:
        UserError: For a path without readable text or an unknown `sample_by`, at the call; for a file
            that is not UTF-8, on reaching it.
    """
    if sample_by not in SAMPLE_BY:
        raise UserError("data.sample_by", sample_by, f"must be one of {', '.join(SAMPLE_BY)}")
    return _read(path, find_text_files(path), sample_by)


def _read(path: str, files: list[Path], sample_by: str) -> Iterator[str]:
    import datasets  # takes a second, and the embedded corpus does without

    # Streaming converts nothing into a cache; the lock it takes all the same goes with the folder.
    with tempfile.TemporaryDirectory() as cache:
        rows = datasets.load_dataset(
            "text",
            data_files=[glob.escape(os.fspath(file)) for file in files],
            sample_by=sample_by,
            split="train",
            streaming=True,
            cache_dir=cache,
        )
    try:
        yield from (row["text"] for row in rows if row["text"].strip())
    except UnicodeDecodeError:
        culprit = next(file for file in files if not _is_utf8(file))
        raise UserError("data.path", path, f"{culprit} is not UTF-8 text") from None
    except OSError as error:  # a broken archive, or a file that is gone
        raise UserError("data.path", path, f"cannot be read: {error}") from None


def _is_utf8(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8") as lines:
            return all(line is not None for line in lines)
    except UnicodeDecodeError:
        return False
