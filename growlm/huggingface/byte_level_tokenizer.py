"""Convert a tiktoken encoding to a `tokenizers` tokenizer, the content of `tokenizer.json`.

tiktoken has one rank per token and merges the two neighbors whose concatenation has the lowest rank; `tokenizers`
needs the pairs that are merged. Merging a token's own bytes by all lower ranks leaves two parts: its pair. In a
vocabulary trained by pairwise merges (BPE) that is the pair the token was made from, and the only one it is ever
made from: bytes merge in the same order in any context, as long as no merge crosses their ends.
"""

from __future__ import annotations

from collections.abc import Mapping

import tiktoken
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_TO_CHARACTER = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(256 + number) for number, byte in enumerate(_OTHERS)
}
"""The character that represents each byte in a byte-level vocabulary (Radford et al. 2019, section 2.2)."""


def build_byte_level_tokenizer(encoding: tiktoken.Encoding, eos_token: str) -> Tokenizer:
    """Build a tokenizer that returns the same ids as an encoding's `encode_ordinary`.

    The tokenizer has the special token too, but text that spells it out is encoded as plain text, as in tiktoken;
    transformers calls this `split_special_tokens`.

    Args:
        encoding: Encoding whose ranks come from pairwise merges.
        eos_token: Its special token for the end of a text.

    Raises:
        ValueError: If the ranks do not come from pairwise merges.
    """
    ranks = encoding._mergeable_ranks
    vocabulary = {_to_byte_level(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=derive_merges(ranks)))
    split = pre_tokenizers.Split(Regex(encoding._pat_str), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(eos_token, special=True, normalized=False)])
    if tokenizer.token_to_id(eos_token) != encoding.eot_token:
        raise ValueError(f"{eos_token} is not the last token of the encoding")
    tokenizer.encode_special_tokens = True
    return tokenizer


def derive_merges(ranks: Mapping[bytes, int]) -> list[tuple[str, str]]:
    """Return the merged pair of every token of more than one byte, in the order of the tokens' ranks.

    Raises:
        ValueError: If a token is not the concatenation of two tokens of lower rank.
    """
    pairs = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = _apply_merges(token, ranks, rank)
        if len(parts) != 2:
            raise ValueError(f"{token!r} is not the concatenation of two tokens of lower rank")
        pairs.append((_to_byte_level(parts[0]), _to_byte_level(parts[1])))
    return pairs


def _apply_merges(token: bytes, ranks: Mapping[bytes, int], limit: int) -> list[bytes]:
    """Return the parts of a token after merging its bytes by all ranks below a limit."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        merged = [parts[i] + parts[i + 1] for i in range(len(parts) - 1)]
        rank, index = min((ranks.get(pair, limit), i) for i, pair in enumerate(merged))
        if rank >= limit:
            break
        parts[index : index + 2] = [merged[index]]
    return parts


def _to_byte_level(token: bytes) -> str:
    return "".join(BYTE_TO_CHARACTER[byte] for byte in token)
