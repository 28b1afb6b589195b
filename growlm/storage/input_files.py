"""Read files that somebody else may have written: regular files only, bounded, strictly parsed.

Everything that growlm reads from a run, a checkpoint, a cache or a file that a command names comes through here.
A file is refused, by its name and with the exit code 2, if it is no regular file, larger than what is read of its
kind, or reached by a link that leads out of its folder.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from growlm.runtime.errors import UserError
from growlm.storage.parsing import parse_json, parse_yaml
from growlm.storage.typed_values import parse_as

MAX_RECORD_BYTES = 2**24
"""Bytes of JSON that tells of a model or a run."""
MAX_INDEX_BYTES = 2**26
"""Bytes of JSON with a line for every tensor or job."""
MAX_YAML_BYTES = 2**18
"""Bytes of a config, which takes seconds to parse; one of a dozen phases has a hundredth of that."""
MAX_PROMPT_FILE_BYTES = 2**26
"""Bytes of a file of prompts."""
MAX_TOKENIZER_BYTES = 2**28
MAX_LINE_BYTES = 2**22
"""Bytes of a line of a history: some hundred thousand loads of experts."""
MAX_HISTORY_BYTES = 2**30
FILE_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def lexists(path: Path) -> bool:
    """Return whether there is anything of that name, also a link that leads nowhere."""
    return os.path.lexists(path)


def resolve_regular_file(path: Path, key: str, root: Path | None) -> Path:
    """Check a file that a library will open by its name.

    Args:
        path: Of the file.
        key: What the user calls the file or its folder, for messages.
        root: The folder that a link must not lead out of, itself a link or not; where it is a snapshot in the
            Hugging Face cache (`models--.../snapshots/REVISION`), links may lead to the `blobs` beside the
            snapshots. None for a file that the user has named, which may be a link to anywhere.

    Returns:
        The file itself, all links followed.

    Raises:
        UserError: If it is no regular file, cannot be reached, or is a link that leads out.
    """
    with _translate_os_errors(path, key):
        target = path.resolve(strict=True)
        mode = target.stat().st_mode
    if root is not None and not _is_within(target, root):
        raise UserError(
            key, path, f"is reached by a link that leads out of {root}, and is not read"
        )
    _check_regular(mode, path, key)
    return target


def check_inside_root(path: Path, key: str, root: Path) -> None:
    """Check that a folder, if there is one of that name, is not a link that leads out of another.

    Raises:
        UserError: If it is.
    """
    if lexists(path) and not _is_within(path.resolve(), root):
        raise UserError(key, path, f"is a link that leads out of {root}")


def open_input_file(path: Path, key: str, root: Path | None) -> BinaryIO:
    """Open a regular file to read it, as `regular_file` finds it.

    Raises:
        UserError: If it is none, or cannot be read.
    """
    target = resolve_regular_file(path, key, root)
    with _translate_os_errors(path, key):
        # Neither flag has an effect on the file that was looked at, only on what may have come in its place.
        descriptor = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _check_regular(os.fstat(descriptor).st_mode, path, key)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, key: str, root: Path | None, max_bytes: int) -> bytes:
    """Read a file of at most so many bytes.

    Raises:
        UserError: If it is larger, no regular file, or cannot be read.
    """
    with open_input_file(path, key, root) as file, _translate_os_errors(path, key):
        is_larger = os.fstat(file.fileno()).st_size > max_bytes
        data = b"" if is_larger else file.read(max_bytes + 1)  # it may grow meanwhile
    if is_larger or len(data) > max_bytes:
        raise UserError(key, path, f"is larger than {max_bytes:,} bytes, and is not read")
    return data


def read_text(path: Path, key: str, root: Path | None, max_bytes: int) -> str:
    """Read a text in UTF-8 of at most so many bytes.

    Raises:
        UserError: If it is larger, no UTF-8, no regular file, or cannot be read.
    """
    return decode_utf8(read_bytes(path, key, root, max_bytes), path, key)


def decode_utf8(data: bytes, path: Path, key: str) -> str:
    """Return bytes of a file as the UTF-8 text that they are.

    Raises:
        UserError: If they are none.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(key, path, f"is not UTF-8 text (byte {error.start:,})") from None


def read_lines(
    path: Path, key: str, root: Path | None, max_bytes: int = MAX_HISTORY_BYTES
) -> Iterator[bytes]:
    """Read the lines of a file one after another, without their ends.

    Raises:
        UserError: If it, or a line of it, is too large, it is no regular file, or it cannot be read.
    """
    with open_input_file(path, key, root) as file:
        number, left = 0, max_bytes
        while True:
            with _translate_os_errors(path, key):
                line = file.readline(MAX_LINE_BYTES + 1)
            number, left = number + 1, left - len(line)
            if len(line) > MAX_LINE_BYTES:
                allowed = (
                    f"line {number:,} is longer than {MAX_LINE_BYTES:,} bytes, and is not read"
                )
                raise UserError(key, path, allowed)
            if left < 0:
                raise UserError(key, path, f"is larger than {max_bytes:,} bytes, and is not read")
            if not line:
                return
            yield line.rstrip(b"\r\n")


def read_json(
    path: Path,
    key: str,
    root: Path | None,
    expected_type: Any = Any,
    *,
    max_bytes: int = MAX_RECORD_BYTES,
    allow_nan: bool = False,
) -> Any:
    """Read a file of JSON.

    Args:
        path: Of the file.
        key: What the user calls the file or its folder, for messages.
        root: See `regular_file`.
        kind: What it must hold, see `typed`.
        limit: Bytes that are read at most.
        allow_nan: Whether NaN and infinities may stand for numbers.

    Raises:
        UserError: If it cannot be read, or holds anything else; with the place in the file.
    """
    text = read_text(path, key, root, max_bytes)
    with translate_content_errors(path, key):
        return parse_as(expected_type, parse_json(text, allow_nan))


def read_yaml(path: Path, key: str, root: Path | None, expected_type: Any = Any) -> tuple[Any, str]:
    """Read a file of YAML.

    Returns:
        What it holds, and its text.

    Raises:
        UserError: If it cannot be read, or holds anything but what `kind` says; with the place in the file.
    """
    text = read_text(path, key, root, MAX_YAML_BYTES)
    with translate_content_errors(path, key):
        return parse_as(expected_type, parse_yaml(text)), text


def hash_input_file(
    path: Path, key: str, root: Path | None, expected_size: int | None = None
) -> str:
    """Return the SHA-256 of a file's bytes.

    Args:
        path: Of the file.
        key: What the user calls the file or its folder, for messages.
        root: See `regular_file`.
        size: What the file must be large; None for any size.

    Raises:
        UserError: If it cannot be read, or is of another size.
    """
    with open_input_file(path, key, root) as file, _translate_os_errors(path, key):
        found = os.fstat(file.fileno()).st_size
        if expected_size is not None and found != expected_size:
            raise UserError(
                key, path, f"is damaged: {found:,} bytes, {expected_size:,} were written"
            )
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def copy_file(path: Path, target: Path, key: str, root: Path | None) -> None:
    """Copy a regular file's bytes as they are.

    Raises:
        UserError: If it is no regular file, or cannot be read.
        OSError: If the copy cannot be written.
    """
    import shutil

    with open_input_file(path, key, root) as file, target.open("xb") as copy:
        shutil.copyfileobj(file, copy, 2**20)


@contextmanager
def translate_content_errors(path: Path, key: str) -> Iterator[None]:
    """Turn what is said of a file's content into an error about the file.

    Raises:
        UserError: For any `ValueError`.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(key, path, str(error)) from None


@contextmanager
def _translate_os_errors(path: Path, key: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except RuntimeError as error:  # of links that lead to each other
        raise UserError(key, path, "is a link that leads to itself") from error
    except ValueError as error:
        raise UserError(key, path, "is no name of a file") from error
    except OSError as error:
        raise UserError(key, path, f"cannot be read: {error.strerror or error}") from error


def _check_regular(mode: int, path: Path, key: str) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for is_it, name in FILE_KINDS if is_it(mode)), "something else")
        raise UserError(key, path, f"is {kind}, not a regular file")


def _is_within(target: Path, root: Path) -> bool:
    folder = root.resolve()
    if target.is_relative_to(folder):
        return True
    for each in (folder, *folder.parents):
        if each.parent.name == "snapshots":
            return target.is_relative_to(each.parents[1] / "blobs")
    return False
