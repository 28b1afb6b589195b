"""Train the embedded tokenizer on the embedded stories.

    pip install tokenizers
    python scripts/train_tokenizer.py

This takes about 4 seconds and writes growlm/data/embedded.tiktoken: 1023 lines of a token in base64 and its rank
(256 bytes, then the merges in the order learned); id 1023 is the end of text. The file is the same each time. Run
the script again after any change to the stories; tests/data/test_tokenizers.py compares.
"""

from __future__ import annotations

import argparse
import base64
import itertools
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from growlm.data import embedded_documents
from growlm.data.tokenization.tiktoken_encodings import EMBEDDED_FILE, EMBEDDED_PATTERN
from growlm.runtime.exit_codes import run_main_and_exit

NUM_RANKS = 1023
DEFAULT_OUT = Path(__file__).parents[1] / "growlm" / "data" / EMBEDDED_FILE


def train_ranks(documents: Iterable[str], num_ranks: int) -> dict[bytes, int]:
    """Learn byte-pair merges.

    Args:
        documents: Texts to learn from.
        num_ranks: Number of tokens, the 256 single bytes included.

    Returns:
        Rank of every token in the sense of tiktoken: its id and also its merge priority.

    Raises:
        ValueError: If the documents are too uniform to learn that many tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(EMBEDDED_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=num_ranks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if len(vocabulary) != num_ranks:
        raise ValueError(f"learned {len(vocabulary)} tokens, need {num_ranks}")
    byte_of = _map_characters_to_bytes()
    tokens = [bytes(byte_of[character] for character in token) for token, _ in vocabulary]
    # The library orders the single bytes by their stand-in characters; order by value is easier to read.
    return {token: rank for rank, token in enumerate(sorted(tokens[:256]) + tokens[256:])}


def _map_characters_to_bytes() -> dict[str, int]:
    """Return the byte that each of the library's stand-in characters represents.

    A byte that is a printable Latin-1 character stands for itself; the others, in order, are
    represented by the characters from 256 on.
    """
    stand_ins = map(chr, itertools.count(256))
    printable = [chr(value).isprintable() and chr(value) != " " for value in range(256)]
    return {chr(value) if printable[value] else next(stand_ins): value for value in range(256)}


def main() -> None:
    """Train the tokenizer and write its file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stories", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    arguments = parser.parse_args()
    ranks = train_ranks(embedded_documents(seed=0, count=arguments.stories), NUM_RANKS)
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
    arguments.out.write_bytes(b"".join(lines))
    print(f"{arguments.out}: {len(ranks)} ranks from {arguments.stories} stories")


if __name__ == "__main__":
    run_main_and_exit(main)
