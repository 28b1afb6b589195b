"""Detect damaged files: JSON records with a checksum, folders with a manifest.

This protects against accidents (a partial write, a flipped bit), not against attackers: whoever can change a file
can change its checksum.
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
    """The size and checksum of one file in a manifest."""

    bytes: NonNegativeInt
    sha256: str


class Manifest(TypedDict):
    """The content of `manifest.json`: one entry per file, by its path in the folder."""

    files: dict[str, ManifestEntry]


def hash_file(path: Path, key: str = "file") -> str:
    """Return the SHA-256 of a file's bytes; the path may be a link to anywhere.

    Raises:
        UserError: If it cannot be read, or is not a regular file.
    """
    return hash_input_file(path, key, root=None)


def dump_checksummed_json(record: dict[str, Any]) -> str:
    """Return a record as JSON text that includes its own checksum."""
    return json.dumps({**record, "sha256": _hash_record(record)}, indent=2) + "\n"


def read_checksummed_json(
    path: Path, key: str, root: Path, expected_type: Any = JSON_OBJECT
) -> Any:
    """Read and validate a record that was written with `dump_checksummed_json`.

    Args:
        path: File to read.
        key: Setting that names the file or its folder, for error messages.
        root: Folder that links must not lead out of.
        expected_type: Type of the record; see `parse_as`.

    Raises:
        UserError: If the file is missing, differs from what was written, or holds a record of another type.
    """
    text = read_text(path, key, root, MAX_RECORD_BYTES)
    try:
        record = parse_json(text)
        digest = record.pop("sha256")
        is_intact = digest == _hash_record(record) and dump_checksummed_json(record) == text
    except (ValueError, KeyError, TypeError, AttributeError):
        is_intact = False
    if not is_intact:
        raise UserError(key, path, "is damaged: its content does not match its checksum")
    with translate_content_errors(path, key):
        return parse_as(expected_type, record)


def _hash_record(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def write_manifest(folder: Path, known_digests: dict[str, str]) -> None:
    """Write `manifest.json` with the size and checksum of every file in a folder, and in folders inside it.

    Args:
        folder: Folder whose files are all written.
        known_digests: Checksums that are already known, by file name; other files are read again.
    """
    names = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    files = {
        name: {
            "bytes": path.stat().st_size,
            "sha256": known_digests.get(name) or hash_file(path),
        }
        for name, path in names.items()
        if not path.is_dir()
    }
    (folder / MANIFEST).write_text(dump_checksummed_json({"files": files}))


def check_manifest(folder: Path, key: str, names: Iterable[str] | None = None) -> None:
    """Check that files match their manifest.

    Args:
        folder: Folder with a manifest.
        key: Setting that names the folder, for error messages.
        names: Names of the files to check; None for all.

    Raises:
        UserError: For the first file that is missing or damaged.
    """
    files = read_manifest(folder, key)
    for name in files if names is None else names:
        path, expected = folder / name, files.get(name)
        if expected is None:
            raise UserError(key, path, f"is not in {MANIFEST}")
        if hash_input_file(path, key, folder, expected["bytes"]) != expected["sha256"]:
            raise UserError(key, path, "is damaged: its checksum differs from the manifest")


def read_manifest(folder: Path, key: str) -> dict[str, ManifestEntry]:
    """Return the sizes and checksums in a folder's manifest, by file name.

    Raises:
        UserError: If the manifest is damaged, or names a file outside its folder.
    """
    path = folder / MANIFEST
    files: dict[str, ManifestEntry] = read_checksummed_json(path, key, folder, Manifest)["files"]
    for name in files:
        if not all(is_file_name(part) for part in name.split("/")):
            reason = f"names {truncate_text(name)!r}, which is not a file in its folder"
            raise UserError(key, path, reason)
    return files


def is_file_name(name: str) -> bool:
    """Return whether a name is a plain file name, without a path that could leave its folder."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name
