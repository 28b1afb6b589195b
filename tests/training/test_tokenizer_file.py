"""A run with a `tokenizer.json` of one's own: what its checkpoints, resumes, exports and figures have."""

import json
import math
import shutil

import pytest
from transformers import AutoTokenizer

from growlm.cli.free_text import quote_free_text
from growlm.config import load_config
from growlm.data import load_tokenizer
from growlm.huggingface import to_growlm, to_huggingface
from growlm.inference.checkpoint_loading import open_checkpoint
from growlm.runtime.errors import UserError
from growlm.runtime.signals import Interrupted
from growlm.training import run_plan
from tests.data import lossy_tokenizers as kinds
from tests.training.tiny_run import TINY_MODEL

LINES = ["the cat sat on a mat", "the man had a hat", "a hat", "the Cat is on a map"] * 10
SETTINGS = (
    "phase_plan=dense",
    "phases.dense.steps=2",
    "phases.dense.batch_size=2",
    "sequence_length=8",
    "model.max_seq_len=32",
    "verification.probe_length=8",
    "trainer.validation_sequences=4",
    "callbacks.sample_tokens=2",
    "logger=none",
    "data=text",
    "data.sample_by=line",
    "data.validation_every=2",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer without any file beside it that names an end of text, and a text."""
    folder = tmp_path_factory.mktemp("tokenizer")
    kinds.save(kinds.add_template(kinds.char_bpe(), "<s>"), folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "text.txt").write_text("\n".join(LINES))
    return folder


def config(folder, run_dir, *overrides, path="tokenizer.json"):
    own = (
        "tokenizer=huggingface",
        f"tokenizer.path='{folder / path}'",
        "tokenizer.eos_token='</s>'",
    )
    data = (f"data.path='{folder}/text.txt'", f"data.cache='{folder}/cache'")
    return load_config(*TINY_MODEL, *SETTINGS, *own, *data, f"run_dir='{run_dir}'", *overrides)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A run that is stopped after its first step, and resumed."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    limit = ("data.max_unknown_fraction=0.02", "callbacks.sample_prompt=The X")
    with pytest.raises(Interrupted):
        run_plan(config(folder, run_dir, *limit, "trainer.max_time=00:00:00:00"))
    return run_plan(load_config(f"resume={run_dir}", "trainer.max_time=null"))


def test_checkpoints_have_the_file_and_the_end_of_text(run, folder):
    checkpoint = run.run_dir / "checkpoints" / "dense_model"
    copied = (checkpoint / "tokenizer.json").read_bytes()
    assert copied == (folder / "tokenizer.json").read_bytes()
    pretrained, tokenizer = open_checkpoint(str(checkpoint), None)
    assert (tokenizer.eos_token_ids, tokenizer.bos_token_ids) == ((2,), (1,))
    assert (
        pretrained.config.vocab_size == tokenizer.vocab_size == len(tokenizer.backend.get_vocab())
    )
    assert pretrained.record["eos_token"] == "</s>"


def test_an_export_tells_transformers_the_end_of_text(run, tmp_path):
    to_huggingface(run.run_dir / "checkpoints" / "dense_model", tmp_path / "hf")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs.eos_token == "</s>"
    assert theirs("the cat")["input_ids"][0] == 1
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["eos_token_id"] == 2
    to_growlm(tmp_path / "hf", tmp_path / "back")
    assert open_checkpoint(str(tmp_path / "back"), None)[1].eos_token_id == 2


def test_a_run_continues_from_its_checkpoint(run, folder, tmp_path):
    """The end of text is known from the checkpoint, and is passed on."""
    checkpoint = run.run_dir / "checkpoints" / "dense_model"
    model = ("model=pretrained", f"model.path='{checkpoint}'", "tokenizer=huggingface")
    data = (
        f"data.path='{folder}/text.txt'",
        f"data.cache='{folder}/cache'",
        "data.max_unknown_fraction=1",
    )
    settings = [each for each in SETTINGS if not each.startswith("model.")]
    plan = ("phases.dense.optimizer_state=reset",)
    more = run_plan(load_config(*settings, *model, *data, *plan, f"run_dir='{tmp_path}/run'"))
    again = open_checkpoint(str(more.run_dir / "checkpoints" / "dense_model"), None)[1]
    assert again.eos_token_id == 2
    assert again.fingerprint == open_checkpoint(str(checkpoint), None)[1].fingerprint


def test_bits_per_byte_leave_out_what_is_unknown(run, folder):
    """Beside a count of characters: all but "C" and "p" are in the vocabulary."""
    held_out = LINES[1::2]
    tokenizer = load_tokenizer("huggingface", folder, eos_token="</s>")
    tokens = sizes = 0
    for line in held_out:  # as many as the validated windows reach into
        tokens += 2 + len(tokenizer.encode(line))
        sizes += len(line) - line.count("C")
        if tokens >= 4 * 8:
            break
    last = run.summary.phases[0]
    expected = last.val_loss / math.log(2) * tokens / sizes
    assert math.isclose(last.val_bits_per_byte, expected, rel_tol=1e-12)


def test_a_folder_and_its_file_are_the_same(folder):
    by_file = load_tokenizer("huggingface", folder / "tokenizer.json", eos_token="</s>")
    assert (
        by_file.fingerprint == load_tokenizer("huggingface", folder, eos_token="</s>").fingerprint
    )


def test_an_end_of_text_takes_the_place_of_the_files_own(folder, tmp_path):
    shutil.copy(folder / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<s>"}')
    tokenizer = load_tokenizer("huggingface", tmp_path, eos_token="</s>")
    assert tokenizer.eos_token_ids == (2, 1)
    assert tokenizer.eos_token_to_record == "</s>"
    assert load_tokenizer("huggingface", tmp_path).eos_token_to_record is None


@pytest.mark.parametrize(
    ("path", "eos_token", "message"),
    [
        ("text.txt", "</s>", r"path=.*text\.txt: is not named tokenizer\.json; rename it"),
        ("none.json", "</s>", r"path=.*none\.json: does not exist"),
        ("", None, r"path=.*names an end-of-text token .* tokenizer\.eos_token=TOKEN"),
        ("", "<|end|>", r"eos_token=<\|end\|>: is not in the vocabulary of .*json"),
    ],
)
def test_a_file_or_an_end_of_text_that_is_refused(folder, path, eos_token, message):
    with pytest.raises(UserError, match=rf"tokenizer\.{message}"):
        load_tokenizer("huggingface", folder / path, eos_token=eos_token)


def test_nothing_is_written_where_too_much_is_unknown(folder, tmp_path):
    with pytest.raises(UserError, match=r"text\.txt: 1\.64% of its bytes are unknown .*\('C'\)"):
        run_plan(config(folder, tmp_path / "run", "data.max_unknown_fraction=0.01"))
    assert not (tmp_path / "run").exists()


def test_an_end_of_text_is_taken_as_it_is_typed():
    argument = "tokenizer.eos_token=<|endoftext|>"
    assert quote_free_text(argument) == "tokenizer.eos_token='<|endoftext|>'"


def test_only_a_hugging_face_tokenizer_takes_an_end_of_text(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.eos_token=</s>: only tokenizer=huggingface"):
        run_plan(load_config(*TINY_MODEL, *SETTINGS[:-3], "tokenizer.eos_token='</s>'"))
