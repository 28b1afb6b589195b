"""Keep standard output and standard error usable: closed pipes, full disks, lost terminals, narrow encodings.

A command whose result is printed ends when standard output cannot be written; one that writes files does not.
Standard error is never a reason to stop.
"""

from __future__ import annotations

import codecs
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

ASCII_FORMS = {
    "→": "->",
    "×": "x",
    "–": "-",
    "−": "-",
    "·": ".",
    "…": "...",
    "±": "+-",
    "σ": "sigma",
    "Σ": "sum",
    "μ": "u",
    "₀": "0",
    "₁": "1",
    "“": '"',
    "”": '"',
}
"""Characters of growlm's own output, and what is written where the encoding lacks them; others become `?`."""
_ENCODING_ERRORS = "growlm.ascii_forms"


class OutputLostError(Exception):
    """Standard output cannot be written; no `OSError`, so that nothing takes it for trouble with a file.

    Args:
        error: Error from the operating system.
    """

    def __init__(self, error: OSError) -> None:
        self.error = error
        super().__init__(error.strerror or str(error))


class OutputStream:
    """Text stream around a standard stream, which replaces what cannot be encoded and handles failing writes.

    All other attributes are those of the stream.

    Args:
        stream: Stream to write to.
        is_optional: Whether what cannot be written is dropped; otherwise `OutputLostError` is raised.
    """

    def __init__(self, stream: TextIO, is_optional: bool) -> None:
        self._stream, self.is_optional = stream, is_optional
        self.error: OSError | None = None
        """First error of a write that was dropped."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, and return its length."""
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._stream.write(make_encodable(text, self._stream.encoding))
        except OSError as error:
            self._handle(error)
        except ValueError:
            if not self._stream.closed:  # by a library
                raise
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            self._stream.flush()
        except OSError as error:
            self._handle(error)
        except ValueError:
            if not self._stream.closed:
                raise

    def isatty(self) -> bool:
        """Return whether the stream is a terminal that is still there."""
        try:
            return self._stream.isatty()
        except (OSError, ValueError):
            return False

    def _handle(self, error: OSError) -> None:
        """Drop what could not be written, or raise.

        A pipe or terminal without a reader never gets one again: the null device takes its place, for what is
        buffered, and for libraries and child processes that write to the same descriptor. A full disk may have
        room later.
        """
        with suppress(OSError, ValueError, AttributeError):
            descriptor = self._stream.fileno()
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)
        if not (self.is_optional or self.error):
            raise OutputLostError(error) from error
        if self.error is None:
            self.error = error
            if self._stream is not getattr(sys.stderr, "_stream", sys.stderr):
                with suppress(
                    OSError, ValueError, AttributeError
                ):  # standard error may be lost too
                    reason = error.strerror or error
                    print(
                        f"warning: standard output cannot be written ({reason}); continuing without it",
                        file=sys.stderr,
                        flush=True,
                    )


_ATTRIBUTE = "_growlm_output_stream"
"""Attribute of a stream with its `OutputStream`: there is one only, since a library may have replaced its `write`
(W&B does, once per process)."""


def make_encodable(text: str, encoding: str | None) -> str:
    """Return the text with characters replaced that the encoding lacks: `→` by `->`, unknown ones by `?`."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, _ENCODING_ERRORS).decode(encoding)


def _replace_unencodable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(ASCII_FORMS.get(character, "?") for character in lost), error.end


codecs.register_error(_ENCODING_ERRORS, _replace_unencodable)


def can_write_unicode() -> bool:
    """Return whether standard output can encode every character."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return encoding.lower().replace("_", "-").startswith("utf")


def is_output_lost() -> bool:
    """Return whether lines of standard output have been dropped."""
    return getattr(sys.stdout, "error", None) is not None


def open_missing_streams() -> None:
    """Open the null device in place of standard streams that the caller has closed.

    Otherwise the next file that is opened, such as a checkpoint, takes the free descriptor, and receives what
    libraries print.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for the whole process


@contextmanager
def protect_streams() -> Iterator[None]:
    """Replace the standard streams by `OutputStream`s for the duration of the block."""
    stdout, stderr = sys.stdout, sys.stderr
    sys.stdout = _wrap(stdout, is_optional=False)
    sys.stderr = _wrap(stderr, is_optional=True)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = stdout, stderr


@contextmanager
def output_may_be_lost() -> Iterator[None]:
    """Drop what standard output does not take for the duration of the block, with one warning."""
    with protect_streams():
        stdout: Any = sys.stdout
        before = getattr(stdout, "is_optional", None)
        if before is None:  # there is no standard output
            yield
            return
        stdout.is_optional = True
        try:
            yield
        finally:
            stdout.flush()
            stdout.is_optional = before


def _wrap(stream: TextIO | None, is_optional: bool) -> TextIO:
    if stream is None or isinstance(stream, OutputStream):
        return cast(TextIO, stream)
    wrapped = getattr(stream, "__dict__", {}).get(_ATTRIBUTE)
    if wrapped is None:
        wrapped = OutputStream(stream, is_optional)
        with suppress(AttributeError):  # a class of the caller's own may not allow it
            setattr(stream, _ATTRIBUTE, wrapped)
    return cast(TextIO, wrapped)
