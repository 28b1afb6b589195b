"""Read untrusted files: only regular files, up to a size limit, strictly parsed.

Everything that growlm reads from a run, a checkpoint, a cache or a file named on the command line is read here.
A file is rejected with exit code 2 and a message that names it if it is not a regular file, is larger than the
limit for its kind, or is reached by a link that leads out of its folder.
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
"""Size limit of JSON about one model or run, in bytes."""
MAX_INDEX_BYTES = 2**26
"""Size limit of JSON with an entry per tensor or sweep job, in bytes."""
MAX_YAML_BYTES = 2**18
"""Size limit of a config in bytes, which takes seconds to parse; a dozen phases need a hundredth of it."""
MAX_TOKENIZER_BYTES = 2**28
MAX_LINE_BYTES = 2**22
"""Size limit of a history line in bytes: room for about a hundred thousand expert loads."""
MAX_HISTORY_BYTES = 2**30
FILE_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def lexists(path: Path) -> bool:
    """Return whether the path exists, broken symbolic links included."""
    return os.path.lexists(path)


def resolve_regular_file(path: Path, key: str, root: Path | None) -> Path:
    """Check a file and return its path with all links resolved.

    Args:
        path: File to check.
        key: Setting that names the file or its folder, for error messages.
        root: Folder that links must not lead out of; may be a link itself. In a snapshot of the Hugging Face cache
            (`models--.../snapshots/REVISION`), links may also lead to the `blobs` folder next to `snapshots`.
            None for a file that the user named, which may be a link to anywhere.

    Raises:
        UserError: If it is not a regular file, cannot be reached, or is a link that leads out of `root`.
    """
    with _translate_os_errors(path, key):
        target = path.resolve(strict=True)
        mode = target.stat().st_mode
    if root is not None and not _is_within(target, root):
        raise UserError(key, path, f"is reached by a link that leads out of {root}; it is not read")
    _check_regular(mode, path, key)
    return target


def check_inside_root(path: Path, key: str, root: Path) -> None:
    """Check that a path, if it exists, is not a link that leads out of `root`.

    Raises:
        UserError: If it leads out.
    """
    if lexists(path) and not _is_within(path.resolve(), root):
        raise UserError(key, path, f"is a link that leads out of {root}")


def open_input_file(path: Path, key: str, root: Path | None) -> BinaryIO:
    """Open a file that `resolve_regular_file` accepts, for reading.

    Raises:
        UserError: If it is rejected, or cannot be read.
    """
    target = resolve_regular_file(path, key, root)
    with _translate_os_errors(path, key):
        # Neither flag affects the checked file, only what may have replaced it since.
        descriptor = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _check_regular(os.fstat(descriptor).st_mode, path, key)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, key: str, root: Path | None, max_bytes: int) -> bytes:
    """Read a file of at most `max_bytes` bytes.

    Raises:
        UserError: If it is larger, not a regular file, or cannot be read.
    """
    with open_input_file(path, key, root) as file, _translate_os_errors(path, key):
        is_larger = os.fstat(file.fileno()).st_size > max_bytes
        data = b"" if is_larger else file.read(max_bytes + 1)  # it may have grown
    if is_larger or len(data) > max_bytes:
        raise UserError(key, path, f"is larger than the limit of {max_bytes:,} bytes")
    return data


def read_text(path: Path, key: str, root: Path | None, max_bytes: int) -> str:
    """Read a UTF-8 text file of at most `max_bytes` bytes.

    Raises:
        UserError: If it is larger, not UTF-8, not a regular file, or cannot be read.
    """
    return decode_utf8(read_bytes(path, key, root, max_bytes), path, key)


def decode_utf8(data: bytes, path: Path, key: str) -> str:
    """Decode the bytes of a file as UTF-8.

    Raises:
        UserError: If they are not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(key, path, f"is not UTF-8 text (byte {error.start:,})") from None


def read_lines(
    path: Path, key: str, root: Path | None, max_bytes: int = MAX_HISTORY_BYTES
) -> Iterator[bytes]:
    """Yield the lines of a file without their line endings.

    Raises:
        UserError: If the file or a line is too large, or the file is not regular or cannot be read.
    """
    with open_input_file(path, key, root) as file:
        number, remaining = 0, max_bytes
        while True:
            with _translate_os_errors(path, key):
                line = file.readline(MAX_LINE_BYTES + 1)
            number, remaining = number + 1, remaining - len(line)
            if len(line) > MAX_LINE_BYTES:
                reason = f"line {number:,} is longer than the limit of {MAX_LINE_BYTES:,} bytes"
                raise UserError(key, path, reason)
            if remaining < 0:
                raise UserError(key, path, f"is larger than the limit of {max_bytes:,} bytes")
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
    """Read and validate a JSON file.

    Args:
        path: File to read.
        key: Setting that names the file or its folder, for error messages.
        root: Folder that links must not lead out of; see `resolve_regular_file`.
        expected_type: Type of the content; see `parse_as`.
        max_bytes: Size limit of the file.
        allow_nan: Whether NaN and infinities are accepted as numbers.

    Raises:
        UserError: If it cannot be read, or its content is of another type; names the location in the file.
    """
    text = read_text(path, key, root, max_bytes)
    with translate_content_errors(path, key):
        return parse_as(expected_type, parse_json(text, allow_nan))


def read_yaml(path: Path, key: str, root: Path | None, expected_type: Any = Any) -> tuple[Any, str]:
    """Read and validate a YAML file; return its content and its text.

    Args:
        path: File to read.
        key: Setting that names the file or its folder, for error messages.
        root: Folder that links must not lead out of; see `resolve_regular_file`.
        expected_type: Type of the content; see `parse_as`.

    Raises:
        UserError: If it cannot be read, or its content is of another type; names the location in the file.
    """
    text = read_text(path, key, root, MAX_YAML_BYTES)
    with translate_content_errors(path, key):
        return parse_as(expected_type, parse_yaml(text)), text


def hash_input_file(
    path: Path, key: str, root: Path | None, expected_size: int | None = None
) -> str:
    """Return the SHA-256 of a file's bytes.

    Args:
        path: File to hash.
        key: Setting that names the file or its folder, for error messages.
        root: Folder that links must not lead out of; see `resolve_regular_file`.
        expected_size: Required size in bytes; None for any size.

    Raises:
        UserError: If it cannot be read, or has another size.
    """
    with open_input_file(path, key, root) as file, _translate_os_errors(path, key):
        found = os.fstat(file.fileno()).st_size
        if expected_size is not None and found != expected_size:
            raise UserError(
                key, path, f"is damaged: it has {found:,} bytes instead of {expected_size:,}"
            )
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def copy_file(path: Path, target: Path, key: str, root: Path | None) -> None:
    """Copy the bytes of a regular file to a new file.

    Raises:
        UserError: If `path` is not a regular file, or cannot be read.
        OSError: If the copy cannot be written.
    """
    import shutil

    with open_input_file(path, key, root) as file, target.open("xb") as copy:
        shutil.copyfileobj(file, copy, 2**20)


@contextmanager
def translate_content_errors(path: Path, key: str) -> Iterator[None]:
    """Turn a `ValueError` about a file's content into a `UserError` that names the file.

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
    except RuntimeError as error:  # links that lead to each other
        raise UserError(key, path, "is a link that leads to itself") from error
    except ValueError as error:
        raise UserError(key, path, "is not a valid file name") from error
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
