"""Print headings, indented text and tables that fit the console.

Text is wrapped between words and never cut: a path or a name that is longer than a line is printed whole.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

INDENT = 2
COLUMN_GAP = 2
MAX_NAME_SHARE = 0.4
"""Share of the console's width above which the names of rows get lines of their own."""

Cell = str | Text


def print_heading(console: Console, title: str) -> None:
    """Print a bold title on a rule, or alone if it is too long for one.

    Args:
        console: Console to print to.
        title: Title, taken literally.
    """
    heading = Text().append(title, style="bold")
    rest = console.width - heading.cell_len - 1
    if rest > 1:
        character = "-" if console.options.ascii_only else "─"
        heading.append(" " + character * rest, style="rule.line")
    _print_line(console, heading)


def print_indented(console: Console, text: Cell, indent: int = INDENT) -> None:
    """Print a text with an indentation that the lines it wraps into keep.

    Args:
        console: Console to print to.
        text: Text; a plain string is taken literally.
        indent: Columns to indent by.
    """
    for line in wrap_text(text, console.width - indent):
        _print_line(console, Text(" " * indent).append_text(line))


def wrap_text(text: Cell, width: int) -> list[Text]:
    """Return the lines of a text that is wrapped between words.

    Args:
        text: Text; a plain string is taken literally.
        width: Columns per line; longer words are kept whole.
    """
    lines: list[Text] = []
    for paragraph in as_text(text).split("\n", allow_blank=True):
        breaks, used = [], 0
        for word in re.finditer(r"\S+\s*", paragraph.plain):
            if used and used + cell_len(word[0].rstrip()) > width:
                breaks.append(word.start())
                used = 0
            used += cell_len(word[0])
        lines += paragraph.divide(breaks)
    for line in lines:
        line.rstrip()
    return lines


def print_table(
    console: Console,
    titles: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    left: Collection[str] = (),
    optional: Collection[str] = (),
    num_keys: int = 1,
) -> None:
    """Print a table of one line per row; if it is too wide, without optional columns, then in several parts.

    Every part repeats the first columns. Names that are too long for a column stand on lines of their own.

    Args:
        console: Console to print to.
        titles: Titles of the columns; the first holds the names of the rows.
        rows: Cells of each row; plain strings are taken literally.
        left: Titles of further columns that are aligned left instead of right.
        optional: Titles of columns that a narrow console does without.
        num_keys: Number of first columns that every part repeats.
    """
    table = _Table(titles, [[as_text(cell) for cell in row] for row in rows], left)
    chosen = list(range(len(titles)))
    names_apart = bool(rows) and table.widths[0] > MAX_NAME_SHARE * console.width
    for title in optional:
        if table.measure(chosen, names_apart) > console.width:
            chosen.remove(titles.index(title))
    keys, others = chosen[:num_keys], chosen[num_keys:]
    parts: list[list[int]] = [[]]
    for column in others:
        if parts[-1] and table.measure([*keys, *parts[-1], column], names_apart) > console.width:
            parts.append([])
        parts[-1].append(column)
    for number, part in enumerate(parts):
        if number:
            console.print()
        for line in table.format_lines([*keys, *part], names_apart):
            _print_line(console, line)


class _Table:
    def __init__(
        self, titles: Sequence[str], rows: list[list[Text]], left: Collection[str]
    ) -> None:
        self.titles, self.rows = titles, rows
        self.is_left = [index == 0 or title in left for index, title in enumerate(titles)]
        self.widths = [
            max([cell_len(title), *(row[index].cell_len for row in rows)])
            for index, title in enumerate(titles)
        ]

    def measure(self, columns: Sequence[int], names_apart: bool) -> int:
        """Return the width of a table of some of the columns."""
        return sum(self._get_widths(columns, names_apart)) + COLUMN_GAP * (len(columns) - 1)

    def format_lines(self, columns: Sequence[int], names_apart: bool) -> list[Text]:
        """Return the lines of a table of some of the columns, names on their own lines if `names_apart`."""
        widths = self._get_widths(columns, names_apart)
        titles = [Text(title, style="bold") for title in self.titles]
        if names_apart and cell_len(self.titles[0]) > INDENT:
            lines = [titles[0]]
            titles[0] = Text()
        else:
            lines = []
        lines.append(self._format_row(titles, columns, widths))
        for row in self.rows:
            if names_apart:
                lines.append(row[0])
                row = [Text(), *row[1:]]
            lines.append(self._format_row(row, columns, widths))
        return lines

    def _get_widths(self, columns: Sequence[int], names_apart: bool) -> list[int]:
        return [0 if names_apart and column == 0 else self.widths[column] for column in columns]

    def _format_row(
        self, row: Sequence[Text], columns: Sequence[int], widths: Sequence[int]
    ) -> Text:
        line = Text()
        for place, (column, width) in enumerate(zip(columns, widths, strict=True)):
            padding = " " * (width - row[column].cell_len)
            line.append(" " * (COLUMN_GAP if place else 0))
            if self.is_left[column]:
                line.append_text(row[column]).append(padding)
            else:
                line.append(padding).append_text(row[column])
        line.rstrip()
        return line


def as_text(cell: Cell) -> Text:
    """Return a cell as rich text; a plain string is taken literally."""
    return Text(cell) if isinstance(cell, str) else cell


def _print_line(console: Console, line: Text) -> None:
    """Print one line as it is, also if it is wider than the console."""
    console.print(line, soft_wrap=True)
