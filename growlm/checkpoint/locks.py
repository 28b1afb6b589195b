"""Locks between processes, which end with the process that has them, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import BinaryIO


class LockedError(Exception):
    """Another process has the lock.

    Args:
        owner: Which, in words.
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        super().__init__(owner)


def take_lock(path: Path) -> BinaryIO:
    """Take a lock, without waiting; closing the file lets go of it.

    Args:
        path: The lock's file; made where it is missing.

    Raises:
        LockedError: If another process has it.
        OSError: If the file cannot be written to.
    """
    file = path.open("a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().decode(errors="replace")
        file.close()
        raise LockedError(owner) from None
    except BaseException:
        file.close()
        raise
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}".encode())
    file.flush()
    return file
