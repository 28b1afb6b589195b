"""Files that say themselves whether they are whole: JSON with a checksum, folders with a manifest.

Against accidents (a torn write, a flipped bit), not against people: who can change a file can change its checksum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

from growlm.runtime.errors import UserError
from growlm.storage.input_files import (
    MAX_RECORD_BYTES,
    hash_input_file,
    read_text,
    translate_content_errors,
)
from growlm.storage.parsing import parse_json
from growlm.storage.typed_values import NonNegativeInt, parse_as, truncate_text

MANIFEST = "manifest.json"
JSON_OBJECT = dict[str, Any]


class ManifestEntry(TypedDict):
    """What a manifest says of a file."""

    bytes: NonNegativeInt
    sha256: str


class Manifest(TypedDict):
    """The contents of `manifest.json`, by the names of files."""

    files: dict[str, ManifestEntry]


def hash_file(path: Path, key: str = "file") -> str:
    """Return the SHA-256 of the bytes of a file that may be a link to anywhere.

    Raises:
        UserError: If it cannot be read, or is no regular file.
    """
    return hash_input_file(path, key, root=None)


def dump_checksummed_json(record: dict[str, Any]) -> str:
    """JSON text of a record with its own checksum."""
    return json.dumps({**record, "sha256": _hash_record(record)}, indent=2) + "\n"


def read_checksummed_json(
    path: Path, key: str, root: Path, expected_type: Any = JSON_OBJECT
) -> Any:
    """Read a record that was written by `sealed`.

    Args:
        path: Of the file.
        key: What the user calls it, for the message.
        root: The folder that a link must not lead out of.
        kind: What the record must be; `typed` takes it.

    Raises:
        UserError: If the file is missing, is not, to the byte, what was written, or holds another record.
    """
    text = read_text(path, key, root, MAX_RECORD_BYTES)
    try:
        record = parse_json(text)
        digest = record.pop("sha256")
        whole = digest == _hash_record(record) and dump_checksummed_json(record) == text
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise UserError(key, path, "is damaged: it is not what was written")
    with translate_content_errors(path, key):
        return parse_as(expected_type, record)


def _hash_record(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def write_manifest(folder: Path, known_digests: dict[str, str]) -> None:
    """Write `manifest.json`: size and checksum of every other file of a folder.

    Args:
        folder: All files are written.
        digests: Checksums that are known already, by file name; the others are read again.
    """
    files = {
        path.name: {
            "bytes": path.stat().st_size,
            "sha256": known_digests.get(path.name) or hash_file(path),
        }
        for path in sorted(folder.iterdir())
    }
    (folder / MANIFEST).write_text(dump_checksummed_json({"files": files}))


def check_manifest(folder: Path, key: str, names: Iterable[str] | None = None) -> None:
    """Compare files with what the manifest says.

    Args:
        folder: Has a manifest.
        key: What the user calls it, for the message.
        names: Of the files to look at; None for all.

    Raises:
        UserError: Naming the first file that is missing or damaged.
    """
    files = read_manifest(folder, key)
    for name in files if names is None else names:
        path, expected = folder / name, files.get(name)
        if expected is None:
            raise UserError(key, path, f"is not in {MANIFEST}")
        if hash_input_file(path, key, folder, expected["bytes"]) != expected["sha256"]:
            raise UserError(key, path, "is damaged: its checksum is not what was written")


def read_manifest(folder: Path, key: str) -> dict[str, ManifestEntry]:
    """Read which files a manifest names, with their sizes and checksums.

    Raises:
        UserError: If it is damaged, or names what is no file of its folder.
    """
    path = folder / MANIFEST
    files: dict[str, ManifestEntry] = read_checksummed_json(path, key, folder, Manifest)["files"]
    for name in files:
        if not is_file_name(name):
            allowed = f"names {truncate_text(name)!r}, which is no file of its folder"
            raise UserError(key, path, allowed)
    return files


def is_file_name(name: str) -> bool:
    """Return whether a name from a file is that of a file in the same folder."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name
