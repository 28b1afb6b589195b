"""Folders whose names collide with nothing, however many processes make some at once."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator
from pathlib import Path


def names(wanted: Path) -> Iterator[Path]:
    """This name, and then it with one suffix after another, without end.

    Raises:
        OSError: If it has no name.
    """
    if not wanted.name:
        raise OSError(errno.EEXIST, "it is the root of the file system")
    yield wanted
    for suffix in itertools.count(2):
        yield wanted.with_name(f"{wanted.name}_{suffix}")


def make_free(wanted: Path) -> Path:
    """Make a folder of this name, or where it is taken of this name and a suffix.

    Args:
        wanted: Its parent exists.

    Raises:
        OSError: If it cannot be made.
    """
    for path in names(wanted):
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable: the suffixes do not end")
