"""Tokenizers of the user's own train a plan; their files lie in every checkpoint."""

import pytest

from growlm.checkpoint.checkpoint_folder import read_config
from growlm.config import load_config
from growlm.config.run_tokenizer import load_run_tokenizer
from growlm.data.tokenization.long_texts import LONG_TEXT_CHARACTERS, encode_long_text
from growlm.data.tokenization.parallel_tokenization import find_unknown
from growlm.inference.checkpoint_loading import open_checkpoint
from growlm.runtime.errors import UserError
from growlm.training import run_plan
from tests.training.tiny_run import TINY, TINY_PLAN

PACKAGE = """
class Halves:
    "Each byte as its two hexadecimal digits; 16 ends a text."
    vocab_size, eos_token_id = 17, 16
    def __init__(self, files=(), **changes):
        self.files = files
        vars(self).update(changes)
    def encode(self, text):
        return [int(digit, 16) for digit in text.encode().hex()]
    def decode(self, ids):
        digits = "".join(f"{token:x}" for token in ids if token < 16)
        return bytes.fromhex(digits[: len(digits) // 2 * 2]).decode(errors="replace")

class Bases:
    "The four bases; any other letter is an error."
    vocab_size, eos_token_id, bos_token_ids = 5, 4, ()
    def encode(self, text):
        return ["ACGT".index(letter) for letter in text]
    def decode(self, ids):
        return "".join("ACGT."[token] for token in ids)
    def find_unknown(self, text, ids):
        return {"N": text.count("N")} if "N" in text else {}

class NoDecode:
    vocab_size, eos_token_id = 17, 16
    def encode(self, text):
        return []

class TooLarge(Halves):
    vocab_size = 10

class Fails(Halves):
    def encode(self, text):
        raise KeyError("a letter")
"""


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    (tmp_path / "package_of_tokenizers.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)


def config(run_dir, *overrides, name="Halves"):
    chosen = [f"tokenizer._target_=package_of_tokenizers.{name}", *overrides]
    kept = [override for override in TINY if override != "tokenizer=bytes"]
    return load_config(*kept, "logger=none", f"run_dir='{run_dir}'", *chosen)


def test_it_trains_and_what_it_lists_lies_in_every_checkpoint(tmp_path):
    (tmp_path / "words.txt").write_text("0123")
    run = run_plan(config(tmp_path / "run", f"tokenizer.files=['{tmp_path}/words.txt']"))
    for folder in (run.run_dir / "checkpoints").glob("*_*/"):
        assert (folder / "words.txt").read_text() == "0123"
        model, record = read_config(folder, "checkpoint")
        assert (model.vocab_size, record["tokenizer"]) == (17, "own")
    assert run.summary.phases[0].sample.startswith("Once upon a time")
    assert run.summary.phases[0].val_bits_per_byte > 0
    with pytest.raises(
        UserError, match="a tokenizer of one's own; only a run that names its class"
    ):
        open_checkpoint(str(run.run_dir / "checkpoints" / "large_moe_final"), None)


def test_it_goes_on_from_its_checkpoint(tmp_path):
    lengths = [f"phases.{name}.steps=1" for name in ("dense", "moe", "wide", "deep")]
    run = run_plan(config(tmp_path / "run", *lengths))
    model = run.run_dir / "checkpoints" / "dense_model"
    again = ("model=pretrained", f"model.path='{model}'", *lengths)
    kept = [override for override in TINY_PLAN if override != "tokenizer=bytes"]
    own = "tokenizer._target_=package_of_tokenizers.Halves"
    run_plan(load_config(*kept, "logger=none", f"run_dir='{tmp_path / 'more'}'", own, *again))


def test_what_it_leaves_out_has_a_default(tmp_path):
    tokenizer = load_run_tokenizer(config(tmp_path))
    assert tokenizer.encode_batch(["a", "b"]) == [[6, 1], [6, 2]]
    assert (tokenizer.eos_token_ids, tokenizer.bos_token_ids) == ((16,), ())
    assert tokenizer.decode([6, 1, 99, 6, 2]) == "a\ufffdb"
    other = load_run_tokenizer(config(tmp_path, "tokenizer.bos_token_ids=[3]"))
    assert other.bos_token_ids == (3,)
    assert other.fingerprint != tokenizer.fingerprint
    text = "a" * (LONG_TEXT_CHARACTERS + 1)
    assert [list(part) for part in encode_long_text(text, tokenizer)] == [[6, 1] * len(text)]


@pytest.mark.parametrize(
    ("name", "overrides", "reason"),
    [
        ("NoDecode", [], "has no decode"),
        ("TooLarge", [], "below its vocab_size=10"),
        ("Fails", [], "cannot encode and decode .*KeyError"),
        ("Halves", ["tokenizer.eos_token_id=17"], "gives the id 17"),
        ("Halves", ["tokenizer.eos_token_id=null"], "has no eos_token_id"),
        ("Nothing", [], "there is no such class"),
    ],
)
def test_what_cannot_be_used(name, overrides, reason, tmp_path):
    with pytest.raises(UserError, match=reason):
        load_run_tokenizer(config(tmp_path, *overrides, name=name))


def test_a_tokenizer_for_another_alphabet_is_tried_on_its_own_tokens(tmp_path):
    tokenizer = load_run_tokenizer(config(tmp_path / "run", name="Bases"))
    assert (tokenizer.encode("GAT"), tokenizer.decode([2, 0, 3])) == ([2, 0, 3], "GAT")
    assert find_unknown("GANNT", [], tokenizer) == {"N": 2}
