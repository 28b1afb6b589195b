"""Create folders with unique names, even when several processes do so at once."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator
from pathlib import Path


def iter_unique_paths(preferred: Path) -> Iterator[Path]:
    """Yield the preferred path, then the same path with suffixes `_2`, `_3` and so on.

    Raises:
        OSError: If the path is the root of the file system.
    """
    if not preferred.name:
        raise OSError(errno.EEXIST, "it is the root of the file system")
    yield preferred
    for suffix in itertools.count(2):
        yield preferred.with_name(f"{preferred.name}_{suffix}")


def make_unique_folder(preferred: Path) -> Path:
    """Create a folder, with a suffix if its name is taken, and return its path.

    Args:
        preferred: Path without a suffix; its parent exists.

    Raises:
        OSError: If the folder cannot be created.
    """
    for path in iter_unique_paths(preferred):
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable: the suffixes do not end")
