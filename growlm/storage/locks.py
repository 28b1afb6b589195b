"""Lock files between processes; a lock ends with the process that holds it, even if that is killed.

The locks use the system's `flock`. On file systems without it, the `filelock` library would fall back to a marker
file, which outlives a killed process.
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
"""Errors of file systems without locks: Lustre mounted without `flock`, NFS without its lock daemon."""
MAX_OWNER_BYTES = 200
"""Bytes to read from a lock file, which names the process that holds it."""


class LockedError(Exception):
    """A lock that another process holds.

    Args:
        owner: Description of the process that holds it.
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        super().__init__(owner)


def acquire_lock(path: Path) -> BinaryIO:
    """Acquire a lock without waiting; closing the returned file releases it.

    If locks are not supported, print a warning once and continue without.

    Args:
        path: Lock file; created if missing.

    Raises:
        LockedError: If another process holds the lock.
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
    """Hold a lock while a new file or folder is written; the lock file lies next to it meanwhile.

    Args:
        path: File or folder to be written; its parent exists.

    Raises:
        LockedError: If another process is writing it.
        OSError: If the lock file cannot be written.
    """
    lock_path = path.with_name(f".{path.name}.lock")
    while True:
        lock = acquire_lock(lock_path)
        if _is_same_file(lock, lock_path):
            break
        lock.close()  # its previous holder removed the file between our opening and locking it
    with lock:
        try:
            yield
        finally:
            with suppress(OSError):
                lock_path.unlink()


def _is_same_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def wait_for_lock(path: Path) -> BinaryIO:
    """Acquire a lock, waiting until no other process holds it; closing the returned file releases it.

    Args:
        path: Lock file; created if missing.

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
    """Open a lock file; do not follow a link, because that would truncate another file.

    Raises:
        OSError: If it is a link, is not a regular file, or cannot be written to.
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
        raise OSError(errno.EINVAL, f"{path.name} is not a regular file")
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
    text = (
        "file locks are not supported here; make sure that no other process uses the same folders"
    )
    print(f"warning: {text}", file=sys.stderr)
