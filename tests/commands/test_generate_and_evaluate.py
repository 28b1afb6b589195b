"""`growlm.generate` and `growlm.evaluate` as commands."""

import json
import os
import pty
import subprocess
import sys

import pytest
import torch

from growlm import convert as convert_command
from growlm import evaluate as evaluate_command
from growlm import generate as generate_command
from growlm.checkpoint import save_model
from growlm.data import generate_story, load_tokenizer
from growlm.inference.generation import generate
from growlm.inference.outputs import replace_control_characters
from growlm.inference.sampling import Sampling
from growlm.inference.text_stream import decode_continuation
from tests.model.tiny_models import EXPERTS, build, tiny_config

BYTES = load_tokenizer("bytes")
CPU = ("device=cpu", "precision=32-true")


@pytest.fixture(scope="module")
def model():
    return build(tiny_config("llama", vocab_size=257, **EXPERTS), std=0.2, dtype=torch.float32)


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "an 'old' one, small"
    save_model(model, folder, {"tokenizer": "bytes"})
    return folder


def expected_text(model, prompt, count, seed=0, **sampling):
    tokens = BYTES.encode(prompt) or [256]
    (found,) = generate(model, [tokens], count, Sampling(**sampling), seeds=seed, stop_tokens={256})
    return decode_continuation(BYTES, tokens, found.tokens), found


def test_text_is_the_prompt_and_what_follows(run, checkpoint, model):
    prompt = "It's: one, {two}"
    arguments = (f"checkpoint={checkpoint}", f"prompt={prompt}", "max_new_tokens=12")

    code, out, err = run(generate_command, *arguments, "temperature=0", *CPU)

    text, found = expected_text(model, prompt, 12, temperature=0)
    assert (code, out) == (0, prompt + text + "\n")
    assert f"{len(found.tokens)} tokens in" in err
    assert run(generate_command, *arguments, "temperature=0", "stream=true", *CPU)[1] == out


def test_json_lines_of_a_file_of_prompts(run, checkpoint, model, tmp_path):
    prompts = ["One", "Two, three\u2028four", "木"]
    (tmp_path / "p.txt").write_text("\n\n".join(prompts) + "\n", encoding="utf-8")
    lines = [json.dumps({"prompt": prompt, "id": 7}) + "\n" for prompt in prompts]
    (tmp_path / "p.jsonl").write_text("".join(lines))
    settings = (
        "max_new_tokens=9",
        "seed=3",
        "samples=2",
        "top_k=40",
        "batch_size=4",
        "format=json",
    )
    arguments = (f"checkpoint={checkpoint}", *settings, *CPU)

    code, out, _ = run(generate_command, f"prompts_file={tmp_path / 'p.txt'}", *arguments)

    records = [json.loads(line) for line in out.split("\n")[:-1]]
    assert code == 0
    assert [(r["prompt"], r["sample"], r["seed"]) for r in records] == [
        (prompt, sample, 3 + sample) for prompt in prompts for sample in range(2)
    ]
    for record in records:
        text, found = expected_text(
            model, record["prompt"], 9, record["seed"], temperature=0.8, top_k=40
        )
        assert record["text"] == text
        assert record["new_tokens"] == len(found.tokens)
        assert record["finish_reason"] == found.finish_reason
        assert record["prompt_tokens"] == len(record["prompt"].encode())
    file = tmp_path / "texts.jsonl"
    jsonl = f"prompts_file={tmp_path / 'p.jsonl'}"
    assert run(generate_command, jsonl, *arguments, f"out={file}")[:2] == (0, "")
    assert file.read_text(encoding="utf-8") == out


def test_where_the_model_reads_no_further(run, checkpoint):
    code, out, err = run(
        generate_command,
        f"checkpoint={checkpoint}",
        "prompt=" + "a" * 60,
        "max_new_tokens=50",
        *CPU,
    )
    assert code == 0
    assert len(out) <= 65
    assert "at the model's context length (max_seq_len=64)" in err


def test_a_text_from_its_beginning(run, checkpoint, model):
    arguments = (f"checkpoint={checkpoint}", "prompt=", "max_new_tokens=5", *CPU)
    code, out, _ = run(generate_command, *arguments)
    assert (code, out) == (0, expected_text(model, "", 5, temperature=0.8)[0] + "\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "prompt=None: give prompt=TEXT or prompts_file=FILE"),
        (["prompt=a", "prompts_file=b"], "not both"),
        (["prompts_file=nowhere.txt"], "prompts_file=nowhere.txt: cannot be read"),
        (["prompts_file=empty.txt"], "contains no prompts"),
        (["prompts_file=latin.txt"], "is not UTF-8 text"),
        (["prompts_file=bad.jsonl"], "bad.jsonl: line 2 is not valid JSON"),
        (["prompts_file=deep.jsonl"], "is nested too deeply"),
        (
            ["prompts_file=fields.jsonl"],
            "must have texts under 'prompt': line 1 has no such column",
        ),
        (["prompt=" + 64 * "a"], "has 64 tokens; the model reads 64, new tokens included"),
        (["prompt=a", "top_p=0"], "top_p=0.0: must be greater than 0.0"),
        (["prompt=a", "temperature=-1"], "temperature=-1.0"),
        (["prompt=a", "stop_tokens=[257]"], "stop_tokens=257: must be a token id from 0 to 256"),
        (["prompt=a", "samples=2", "temperature=0"], "the same text every time"),
        (["prompt=a", "samples=2", "stream=true"], "needs one prompt, one sample"),
        (["prompt=a", "out=empty.txt"], "out=empty.txt: already exists"),
        (["prompt=a", "out=no/where.txt"], "no such folder"),
        (["prompt=a", "tokenizer_name=gpt2"], "was trained with bytes"),
        (["prompt=a", "temprature=1"], "did you mean temperature?"),
    ],
)
def test_what_cannot_be_is_refused(run, checkpoint, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes("né\n".encode("latin-1"))
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\noh no\n')
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    (tmp_path / "fields.jsonl").write_text('{"text": "a"}\n')
    before = set(tmp_path.iterdir())

    code, out, err = run(generate_command, f"checkpoint={checkpoint}", *arguments, "device=cpu")

    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert set(tmp_path.iterdir()) == before


def test_a_prompt_that_is_no_utf8(checkpoint):
    arguments = [f"checkpoint={checkpoint}", "max_new_tokens=3", *CPU]
    command = [sys.executable, "-m", "growlm.generate", *arguments, b"prompt=caf\xe9"]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert "caf?" in done.stdout.decode("utf-8")


def test_a_file_of_the_partial_ones_name_stays(run, checkpoint, tmp_path):
    other = tmp_path / ".out.txt.partial"
    other.symlink_to(tmp_path / "precious")
    (tmp_path / "precious").write_text("kept")
    out = tmp_path / "out.txt"
    arguments = (f"checkpoint={checkpoint}", "prompt=a", "max_new_tokens=3", f"out={out}", *CPU)
    assert run(generate_command, *arguments)[0] == 0
    assert (tmp_path / "precious").read_text() == "kept"
    assert {path.name for path in tmp_path.iterdir()} == {other.name, "precious", "out.txt"}


def test_a_checkpoint_that_names_no_tokenizer(run, model, tmp_path):
    save_model(model, tmp_path / "nameless", {})
    arguments = (f"checkpoint={tmp_path / 'nameless'}", "prompt=a", "max_new_tokens=2", *CPU)
    code, _, err = run(generate_command, *arguments)
    assert code == 2
    assert "tokenizer_name=None: the checkpoint does not record its tokenizer" in err
    assert run(generate_command, *arguments, "tokenizer_name=bytes")[0] == 0
    code, _, err = run(generate_command, *arguments, "tokenizer_name=embedded")
    assert code == 2
    assert "has 1024 tokens, but the model" in err


def test_a_broken_model_is_an_error_in_words(run, tmp_path):
    broken = build(tiny_config(vocab_size=257), dtype=torch.float32)
    broken.final_norm.weight.data.fill_(float("nan"))
    save_model(broken, tmp_path / "broken", {"tokenizer": "bytes"})
    out = tmp_path / "text.txt"
    arguments = (f"checkpoint={tmp_path / 'broken'}", "prompt=a", f"out={out}", *CPU)
    code, _, err = run(generate_command, *arguments)
    assert code == 1
    assert "stopped: the model's logits are not finite" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]
    code, _, err = run(
        evaluate_command, f"checkpoint={tmp_path / 'broken'}", "data.documents=40", "device=cpu"
    )
    assert code == 1
    assert (
        "the model's probabilities are not finite (the weight final_norm.weight holds NaN)" in err
    )


def test_on_a_terminal_the_text_comes_as_it_is_made(checkpoint, model):
    """A real terminal: characters whole, nothing that it would take for a command."""
    parent, child = pty.openpty()
    arguments = [f"checkpoint={checkpoint}", "prompt=N\x1b[2Jé", "max_new_tokens=40", *CPU]
    process = subprocess.Popen(
        [sys.executable, "-m", "growlm.generate", *arguments],
        stdout=child,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        env=os.environ
        | {"OMP_NUM_THREADS": "1"},  # as here: another number of threads rounds otherwise
    )
    os.close(child)
    parts = []
    while True:
        try:
            part = os.read(parent, 4096)
        except OSError:  # how Linux says that the other end was closed
            break
        if not part:
            break
        parts.append(part)
    os.close(parent)
    assert process.wait() == 0
    assert all(part.decode("utf-8") is not None for part in parts)
    text = b"".join(parts).decode("utf-8").replace("\r\n", "\n")
    prompt = "N\x1b[2Jé"
    raw = prompt + expected_text(model, prompt, 40, temperature=0.8)[0] + "\n"
    assert text == replace_control_characters(raw) != raw
    assert len(parts) > 1


def evaluated(run, checkpoint, *arguments):
    code, out, _ = run(
        evaluate_command, f"checkpoint={checkpoint}", "format=json", "device=cpu", *arguments
    )
    assert code == 0
    return json.loads(out)


def test_evaluated_on_text_of_ones_own(run, checkpoint, tmp_path):
    text = "\n\n".join(generate_story(0, index).replace("\n", " ") for index in range(6))
    (tmp_path / "my, 'text'.txt").write_text(text)
    arguments = ("data=text", f"data.path={tmp_path}/my, 'text'.txt")

    whole = evaluated(run, checkpoint, *arguments, "split=all")
    held_out = evaluated(run, checkpoint, *arguments, "data.validation_every=3")

    assert (whole["documents"], held_out["documents"]) == (6, 2)
    assert whole["bytes"] == len(text) - 2 * 5
    assert whole["tokens"] == whole["bytes"] + 6
    assert whole["without_ends_of_text"]["tokens"] == whole["bytes"]
    assert whole["sequence_length"] == whole["stride"] == 64
    assert 5 < whole["loss"] < 7


def test_documents_are_evaluated_apart_on_request(run, checkpoint):
    crossing, apart = (
        evaluated(run, checkpoint, "data.documents=60", "limit=900", f"data.document_mask={mask}")
        for mask in ("false", "true")
    )
    assert [crossing["document_mask"], apart["document_mask"]] == [False, True]
    assert crossing["tokens"] == apart["tokens"] == 900
    assert crossing["loss"] != apart["loss"]


def test_a_hugging_face_folder_is_as_good(run, checkpoint, tmp_path):
    folder = tmp_path / "hf"
    assert run(convert_command, f"source={checkpoint}", f"out={folder}", "to=huggingface")[0] == 0
    settings = ("data.documents=60", "limit=900")
    ours, theirs = (evaluated(run, path, *settings) for path in (checkpoint, folder))
    assert ours["tokens"] == theirs["tokens"] == 900
    assert ours["bits_per_byte"] == theirs["bits_per_byte"]
    arguments = ("prompt=Once", "max_new_tokens=8", *CPU)
    texts = [run(generate_command, f"checkpoint={p}", *arguments)[1] for p in (checkpoint, folder)]
    assert texts[0] == texts[1]


def test_a_text_ends_at_each_of_several_ends(run, checkpoint, model, tmp_path):
    folder = tmp_path / "hf"
    assert run(convert_command, f"source={checkpoint}", f"out={folder}", "to=huggingface")[0] == 0
    (tmp_path / "hf" / "manifest.json").unlink()
    _, found = expected_text(model, "Once", 8, temperature=0)
    end, before = found.tokens[3], found.tokens[: found.tokens.index(found.tokens[3])]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, end]}))
    arguments = ("prompt=Once", "max_new_tokens=8", "temperature=0", "format=json", *CPU)
    record = json.loads(run(generate_command, f"checkpoint={folder}", *arguments)[1])
    assert (record["new_tokens"], record["finish_reason"]) == (len(before), "stop")


def test_a_table_for_people(run, checkpoint):
    code, out, _ = run(
        evaluate_command, f"checkpoint={checkpoint}", "data.documents=40", "device=cpu"
    )
    assert code == 0
    names = ["data", "tokens", "loss", "perplexity", "bits per byte", "without EOS tokens"]
    assert [line[:22].strip() for line in out.splitlines()] == names
    assert "embedded (validation): 2 documents" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sequence_length=65"], "sequence_length=65: must be at most the model's max_seq_len, 64"),
        (["stride=65"], "stride=65: must be at most the sequence length, 64"),
        (["split=test"], "split=test: must be one of validation, all"),
        (["data=text", "data.path=nowhere.txt"], "data.path"),
        (["data=texts"], "data=texts: there is no such file; did you mean text?"),
        (["data.documents=5"], "nothing to evaluate on"),
        (["limits=3"], "did you mean limit?"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(run, checkpoint, arguments, message):
    code, out, err = run(evaluate_command, f"checkpoint={checkpoint}", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
