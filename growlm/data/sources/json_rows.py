"""Read JSON objects one at a time: one on each line, or the items of one array."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Set
from typing import Any

from growlm.data.sources.text_lines import TextLines, TooLongError

CHUNK_CHARACTERS = 1 << 16
"""Number of characters that an array is read by."""
TRUNCATION_CHARACTERS = 16
"""An error this close to the end of a chunk may come from the cut: longer than any literal, number or escape."""
CUT_LINE_HINT = "; a line must hold a whole object, or the file an array of objects"
WHITESPACE = re.compile(r"[ \t\n\r]*")


class JsonRowsError(ValueError):
    """The content is not JSON objects; the message names the line."""


class JsonRows(Iterator[dict[str, Any]]):
    """An iterator over the objects of a file, with only one of them and a chunk of the file in memory.

    Args:
        lines: Lines of the file.
        used_keys: Keys that an object must not have twice.

    Attributes:
        line: Number of the line in which the last object begins.
    """

    def __init__(self, lines: TextLines, used_keys: Set[str]) -> None:
        self.line = 0
        self._lines = lines
        self._decoder = json.JSONDecoder(object_pairs_hook=_make_mapping_builder(used_keys))
        self._rows = self._read()

    def __next__(self) -> dict[str, Any]:
        return next(self._rows)

    def _read(self) -> Iterator[dict[str, Any]]:
        stream = self._lines.stream
        while (first := stream.read(1)).isspace():
            self._lines.number += first == "\n"
        if first == "[":
            yield from self._read_array()
        elif first:
            yield from self._read_lines(first)

    def _read_lines(self, first: str) -> Iterator[dict[str, Any]]:
        """Read an object on each line, of the first of which one character has been read."""
        for line in self._lines:
            text, first = first + line, ""
            if text.isspace():
                continue
            self.line = self._lines.number
            row = self._parse(self._decoder.decode, text, CUT_LINE_HINT)
            if not isinstance(row, dict):
                raise JsonRowsError(
                    f"line {self.line} is not a JSON object; each line must be one, "
                    "or the file an array of objects"
                )
            yield row
        if first:  # the file has nothing but this character
            raise JsonRowsError(f"line {self._lines.number + 1} is not valid JSON")

    def _read_array(self) -> Iterator[dict[str, Any]]:
        """Read the items of an array, whose bracket has been read."""
        buffer = _ArrayBuffer(self._lines)
        if buffer.skip_whitespace() == "]":
            buffer.position += 1
        else:
            while True:
                buffer.skip_whitespace()
                self.line = buffer.line
                row = self._parse(buffer.parse_item, self._decoder)
                if not isinstance(row, dict):
                    raise JsonRowsError(
                        f"the array's item in line {self.line} is not a JSON object"
                    )
                yield row
                mark = buffer.skip_whitespace()
                buffer.position += 1
                if mark == "]":
                    break
                if mark != ",":
                    found = repr(mark) if mark else "the end of the file"
                    raise JsonRowsError(
                        f"line {buffer.line} is not valid JSON: an item of the array is followed by {found}"
                    )
        if buffer.skip_whitespace():
            raise JsonRowsError(f"line {buffer.line} is not valid JSON: text follows the array")

    def _parse(self, parse: Callable[[Any], Any], source: Any, cut_hint: str = "") -> Any:
        try:
            return parse(source)
        except TooLongError:
            raise
        except _DuplicateKeyError as error:
            raise JsonRowsError(f"line {self.line} has the key {error} twice") from None
        except json.JSONDecodeError as error:
            is_cut = error.pos >= len(error.doc.rstrip())
            reason = f"line {self.line} is not valid JSON: {error.msg}"
            raise JsonRowsError(reason + cut_hint * is_cut) from None
        except ValueError:  # such as a number of more digits than Python converts
            raise JsonRowsError(f"line {self.line} is not valid JSON") from None
        except RecursionError:
            raise JsonRowsError(
                f"line {self.line} is not valid JSON: is nested too deeply"
            ) from None


class _ArrayBuffer:
    """A part of an array's text, of which `position` is the next character."""

    def __init__(self, lines: TextLines) -> None:
        self._lines, self._line, self._counted = lines, lines.number + 1, 0
        self.text, self.position = "", 0

    @property
    def line(self) -> int:
        """Number of the line at `position`."""
        self._line += self.text.count("\n", self._counted, self.position)
        self._counted = self.position
        return self._line

    def skip_whitespace(self) -> str:
        """Advance to the next character that is not white space, and return it; empty at the end."""
        while True:
            match = WHITESPACE.match(self.text, self.position)
            assert match is not None
            self.position = match.end()
            if self.position < len(self.text):
                return self.text[self.position]
            if not self._fill():
                return ""

    def parse_item(self, decoder: json.JSONDecoder) -> Any:
        """Parse the item at `position`, and advance behind it.

        Raises:
            ValueError: If it is not valid JSON.
        """
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                is_open = error.msg.startswith("Unterminated string")
                is_cut = is_open or len(self.text) - error.pos < TRUNCATION_CHARACTERS
                if not is_cut or not self._fill():
                    raise
            else:
                self.position = end
                return value

    def _fill(self) -> bool:
        """Read on, at least as much as is left, so that a long item is parsed only a few times."""
        line, rest = self.line, self.text[self.position :]
        self._lines.check_length(len(rest), f"the array's item in line {line}")
        chunk = self._lines.stream.read(max(CHUNK_CHARACTERS, len(rest)))
        self.text, self.position, self._counted = rest + chunk, 0, 0
        return bool(chunk)


class _DuplicateKeyError(ValueError):
    pass


def _make_mapping_builder(
    used_keys: Set[str],
) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next((key for key in keys if key in used_keys and keys.count(key) > 1), None)
            if twice is not None:
                raise _DuplicateKeyError(twice)
        return row

    return build
