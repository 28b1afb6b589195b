"""Files that say themselves whether they are whole: JSON with a checksum, folders with a manifest.

Against accidents (a torn write, a flipped bit), not against people: who can change a file can change its checksum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from growlm.errors import UserError

MANIFEST = "manifest.json"
LARGEST_JSON = 2**28
"""Bytes. A larger one is none of ours, and would take its size several times over to read."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Parse a JSON file of reasonable size.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no JSON, too large or too deep.
    """
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise ValueError(f"{size:,} bytes, at most {LARGEST_JSON:,} are read")
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def sealed(record: dict[str, Any]) -> str:
    """JSON text of a record with its own checksum."""
    return json.dumps({**record, "sha256": _digest(record)}, indent=2) + "\n"


def read_sealed(path: Path, key: str) -> dict[str, Any]:
    """A record that was written by `sealed`.

    Args:
        path: Of the file.
        key: What the user calls it, for the message.

    Raises:
        UserError: If the file is missing or is not, to the byte, what was written.
    """
    try:
        text = path.read_bytes() if path.stat().st_size <= LARGEST_JSON else b""
        record = json.loads(text)
        digest = record.pop("sha256")
        whole = digest == _digest(record) and sealed(record).encode() == text
    except OSError as error:
        raise UserError(key, path, f"cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise UserError(key, path, "is damaged: it is not what was written")
    return dict(record)


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def write_manifest(folder: Path, digests: dict[str, str]) -> None:
    """Write `manifest.json`: size and checksum of every other file of a folder.

    Args:
        folder: All files are written.
        digests: Checksums that are known already, by file name; the others are read again.
    """
    files = {
        path.name: {
            "bytes": path.stat().st_size,
            "sha256": digests.get(path.name) or file_digest(path),
        }
        for path in sorted(folder.iterdir())
    }
    (folder / MANIFEST).write_text(sealed({"files": files}))


def check_manifest(folder: Path, key: str, names: Iterable[str] | None = None) -> None:
    """Compare files with what the manifest says.

    Args:
        folder: Has a manifest.
        key: What the user calls it, for the message.
        names: Of the files to look at; None for all.

    Raises:
        UserError: Naming the first file that is missing or damaged.
    """
    files = read_sealed(folder / MANIFEST, key)["files"]
    for name in files if names is None else names:
        path, expected = folder / name, files.get(name)
        if expected is None:
            raise UserError(key, path, f"is not in {MANIFEST}")
        try:
            size = path.stat().st_size
            if size != expected["bytes"]:
                allowed = f"is damaged: {size:,} bytes, {expected['bytes']:,} were written"
                raise UserError(key, path, allowed)
            if file_digest(path) != expected["sha256"]:
                raise UserError(key, path, "is damaged: its checksum is not what was written")
        except OSError as error:
            raise UserError(key, path, f"cannot be read: {error.strerror}") from error
