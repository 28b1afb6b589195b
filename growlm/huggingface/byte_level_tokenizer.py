"""A tiktoken encoding as a `tokenizers` tokenizer, which is what `tokenizer.json` holds.

tiktoken keeps one rank for each token and merges the two neighbours whose union has the lowest rank; `tokenizers`
wants the pairs. The pair of a token is what is left, two parts, when its own bytes are merged by all lower ranks.
In a vocabulary that was trained pair by pair that is the pair it came from, and the only one it ever comes from:
whatever stands around some bytes, they merge in the same order as alone, as long as no merge crosses their ends.
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
"""The character that stands for each byte in a byte-level vocabulary (Radford et al. 2019's, section 2.2)."""


def build_byte_level_tokenizer(encoding: tiktoken.Encoding, eos_token: str) -> Tokenizer:
    """A tokenizer that gives the ids of an encoding's `encode_ordinary`.

    Special tokens are of the tokenizer too, but a text that has them written in it is plain text here as there; in
    transformers that is `split_special_tokens`.

    Args:
        encoding: Its ranks come from pairwise merges.
        end_of_text: Its special token.

    Raises:
        ValueError: If they do not.
    """
    ranks = encoding._mergeable_ranks
    vocabulary = {_to_byte_level(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=derive_merges(ranks)))
    pieces = pre_tokenizers.Split(Regex(encoding._pat_str), behavior="isolated")
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, spelling])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(eos_token, special=True, normalized=False)])
    if tokenizer.token_to_id(eos_token) != encoding.eot_token:
        raise ValueError(f"{eos_token} is not the last token of the encoding")
    tokenizer.encode_special_tokens = True
    return tokenizer


def derive_merges(ranks: Mapping[bytes, int]) -> list[tuple[str, str]]:
    """The pair of every token of more than one byte, in the order of their ranks.

    Raises:
        ValueError: If a token is no union of two tokens of lower rank.
    """
    pairs = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = _apply_merges(token, ranks, rank)
        if len(parts) != 2:
            raise ValueError(f"{token!r} is no union of two tokens of lower rank")
        pairs.append((_to_byte_level(parts[0]), _to_byte_level(parts[1])))
    return pairs


def _apply_merges(token: bytes, ranks: Mapping[bytes, int], limit: int) -> list[bytes]:
    """A token's bytes, merged by all ranks below a limit."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        unions = [parts[i] + parts[i + 1] for i in range(len(parts) - 1)]
        rank, place = min((ranks.get(union, limit), i) for i, union in enumerate(unions))
        if rank >= limit:
            break
        parts[place : place + 2] = [unions[place]]
    return parts


def _to_byte_level(token: bytes) -> str:
    return "".join(BYTE_TO_CHARACTER[byte] for byte in token)
