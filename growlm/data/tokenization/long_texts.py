"""Encoding of very long texts part by part, since encoding takes up to 160 times the memory of its input.

Where a text is cut, its tokens stay the same:

* growlm's own encodings and GPT-2's first split a text by a pattern, and merge within the pieces. No piece has a
  space after a letter, nor a letter before one of the punctuation marks in `CUT_POINTS`, so a text may be cut
  there. A stretch of `MAX_CUT_SEARCH` characters without such a point (base64, DNA) is cut anyway, which may
  change the tokens around the cut, except for `bytes`, whose tokens are the same wherever a text is cut.
* A Hugging Face tokenizer may do anything. Its parts overlap, and both encodings must agree on all tokens around
  a cut. If they do not, the text is encoded as a whole.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from growlm.data.tokenization.huggingface_tokenizer import HuggingFaceTokenizer
from growlm.data.tokenization.own_tokenizer import OwnTokenizer
from growlm.data.tokenization.tokenizer import Tokenizer

PIECE_CHARACTERS = 1 << 18
"""Number of characters that are encoded at once."""
LONG_TEXT_CHARACTERS = 2 * PIECE_CHARACTERS
"""Length of a text, in characters, above which it is cut."""
MAX_CUT_SEARCH = 1 << 20
"""Number of characters after a piece that are searched for a cut point."""
OVERLAP_CHARACTERS = 1 << 11
"""Number of characters that a Hugging Face tokenizer's piece shares with each of its neighbors."""
LETTER = r"[^\W\d_]"
CUT_POINTS = re.compile(
    rf"(?<={LETTER})(?= {LETTER})|(?<=[a-zA-Z\u3040-\u30ff\u4e00-\u9fff])(?=[.,;:!?\u3001\u3002\uff0c])"
)


def encode_long_text(text: str, tokenizer: Tokenizer) -> Iterable[Sequence[int]]:
    """Encode a text of more than `LONG_TEXT_CHARACTERS`; return its ids in parts, in order."""
    if isinstance(tokenizer, OwnTokenizer):  # nobody knows where its tokens may be cut
        return [tokenizer.encode(text)]
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return map(tokenizer.encode, split_long_text(text))
    parts = _encode_overlapping(text, tokenizer)
    return [tokenizer.encode(text)] if parts is None else parts


def split_long_text(text: str) -> Iterator[str]:
    """Cut a text where its tokens do not depend on the other side, if there is such a point."""
    begin = 0
    while len(text) - begin > LONG_TEXT_CHARACTERS:
        limit = begin + PIECE_CHARACTERS + MAX_CUT_SEARCH
        found = CUT_POINTS.search(text, begin + PIECE_CHARACTERS, limit)
        end = found.start() if found else min(limit, len(text))
        yield text[begin:end]
        begin = end
    if begin < len(text):
        yield text[begin:]


def _encode_overlapping(text: str, tokenizer: HuggingFaceTokenizer) -> list[array[int]] | None:
    """Return the ids of overlapping pieces; None if they do not agree."""
    parts, before = [], None
    for begin in range(0, len(text), PIECE_CHARACTERS):
        end = min(begin + PIECE_CHARACTERS, len(text))
        start = max(0, begin - OVERLAP_CHARACTERS)
        ids, spans = tokenizer.encode_with_spans(text[start : end + OVERLAP_CHARACTERS])
        spans = [(start + first, start + last) for first, last in spans]
        if spans != sorted(spans) or (
            before is not None and _tokens_near(begin, ids, spans) != before
        ):
            return None
        before = _tokens_near(end, ids, spans)
        first = bisect_left(spans, (begin, 0)) if begin else 0
        last = bisect_left(spans, (end, 0)) if end < len(text) else len(ids)
        parts.append(array("I", ids[first:last]))
    return parts


def _tokens_near(
    position: int, ids: Sequence[int], spans: Sequence[tuple[int, int]]
) -> list[tuple[int, tuple[int, int]]]:
    """Return the tokens that begin near a character position, and their ranges."""
    first = bisect_left(spans, (position - OVERLAP_CHARACTERS // 2, 0))
    last = bisect_left(spans, (position + OVERLAP_CHARACTERS // 2, 0))
    return list(zip(ids[first:last], spans[first:last], strict=True))
