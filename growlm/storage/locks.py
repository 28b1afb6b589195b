"""Locks between processes, which end with the process that has them, however it ends.

They are the system's own (`flock`). Where a file system has none, the `filelock` library would use a marker file,
which outlives a killed process.
"""

from __future__ import annotations

import errno
import os
import platform
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from growlm.runtime.escaping import escape_unprintable_line

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

UNSUPPORTED_ERRNOS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""What file systems without locks answer: Lustre mounted without `flock`, NFS without its lock daemon."""


MAX_OWNER_BYTES = 200
"""Bytes of a lock's file that say who has it."""


class LockedError(Exception):
    """Another process has the lock.

    Args:
        owner: Which, in words.
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        super().__init__(owner)


def acquire_lock(path: Path) -> BinaryIO:
    """Take a lock, without waiting; closing the file lets go of it.

    Where there are no locks, print a warning, once, and go on without.

    Args:
        path: The lock's file; made where it is missing.

    Raises:
        LockedError: If another process has it.
        OSError: If the file cannot be written to.
    """
    file = _open_lock_file(path)
    try:
        _flock(file, waits=False)
    except BlockingIOError:
        file.seek(0)
        owner = escape_unprintable_line(file.read(MAX_OWNER_BYTES).decode(errors="replace"))
        file.close()
        raise LockedError(owner) from None
    except BaseException:
        file.close()
        raise
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}".encode())
    file.flush()
    return file


@contextmanager
def lock_for_creation(path: Path) -> Iterator[None]:
    """Hold the lock for writing a file or folder that does not exist yet; its file lies beside it meanwhile.

    Args:
        path: What will be written; its parent exists.

    Raises:
        LockedError: If another process writes it.
        OSError: If nothing can be written there.
    """
    place = path.with_name(f".{path.name}.lock")
    while True:
        lock = acquire_lock(place)
        if _is_same_file(lock, place):
            break
        lock.close()  # whoever had it removed the file between its being opened and locked
    with lock:
        try:
            yield
        finally:
            with suppress(OSError):
                place.unlink()


def _is_same_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def wait_for_lock(path: Path) -> BinaryIO:
    """Take a lock as soon as no other process has it; closing the file lets go of it.

    Args:
        path: The lock's file; made where it is missing.

    Raises:
        OSError: If the file cannot be written to.
    """
    file = _open_lock_file(path)
    try:
        _flock(file, waits=True)
    except BaseException:
        file.close()
        raise
    return file


def _open_lock_file(path: Path) -> BinaryIO:
    """The lock's file; a link is not followed, lest another file be cut to nothing.

    Raises:
        OSError: If it is a link or no regular file, or cannot be written to.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, f"{path.name} is a link") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{path.name} is no regular file")
    return os.fdopen(descriptor, "a+b")


def _flock(file: BinaryIO, waits: bool) -> None:
    if fcntl is None:
        _warn_locks_unsupported()
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in UNSUPPORTED_ERRNOS:
            raise
        _warn_locks_unsupported()


@cache
def _warn_locks_unsupported() -> None:
    text = "no file locks here; make sure that no other process works in the same folders"
    print(f"warning: {text}", file=sys.stderr)
