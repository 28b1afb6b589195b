"""Report how much of a text the tokenizer has no token for, and refuse what is above the limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from growlm.runtime.errors import UserError
from growlm.runtime.escaping import escape_unprintable_line

KEY = "data.max_unknown_fraction"
MAX_SHOWN_PARTS = 5
MAX_SHOWN_CHARACTERS = 20


@dataclass
class UnknownTally:
    """How much of a text has no token.

    Attributes:
        num_bytes: Bytes of the text in UTF-8.
        num_unknown_bytes: Those of them that were dropped or became an unknown token.
        parts: What that was, with the bytes of all occurrences.
    """

    num_bytes: int = 0
    num_unknown_bytes: int = 0
    parts: Counter[str] = field(default_factory=Counter)

    def add(self, num_bytes: int, num_unknown_bytes: int, parts: Mapping[str, int]) -> None:
        """Add a text."""
        self.num_bytes += num_bytes
        self.num_unknown_bytes += num_unknown_bytes
        self.parts.update(parts)

    @property
    def fraction(self) -> float:
        """Fraction of the bytes that have no token."""
        return self.num_unknown_bytes / max(1, self.num_bytes)

    def describe(self) -> str:
        """Return the share and the most frequent parts: `2.31% of its bytes are unknown ('T', 'é')`."""
        most_first = sorted(self.parts, key=lambda part: (-self.parts[part], part))
        shown = ", ".join(map(_quote, most_first[:MAX_SHOWN_PARTS]))
        more = ", ..." if len(self.parts) > MAX_SHOWN_PARTS else ""
        percent = f"{self.fraction:.2%}" if self.fraction >= 5e-5 else "less than 0.01%"
        return f"{percent} of its bytes are unknown to the tokenizer ({shown}{more})"

    def check(self, limit: float, text_name: str) -> None:
        """Check that no more than `limit` of the text's bytes are unknown.

        Raises:
            UserError: If more are.
        """
        if self.fraction > limit:
            reason = (
                f"{text_name}: {self.describe()}: dropped, or <unk>. Use a tokenizer that was trained on such "
                "text or falls back to bytes; or raise this limit to train and score without them"
            )
            raise UserError(KEY, limit, reason)


def _quote(part: str) -> str:
    part = part if len(part) <= MAX_SHOWN_CHARACTERS else f"{part[:MAX_SHOWN_CHARACTERS]} ..."
    return f"'{escape_unprintable_line(part)}'"
