"""`growlm.evaluate` and `growlm.generate` say what of a text the tokenizer has no token for."""

import json
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from growlm import evaluate as evaluate_command
from growlm import generate as generate_command
from growlm.checkpoint import save_model
from growlm.data import load_tokenizer
from tests.data import lossy_tokenizers as kinds
from tests.model.tiny_models import build, tiny_config

CPU = ("device=cpu", "precision=32-true")
LINES = ["the Cat sat", "a man 😀", "a hat"]
UNKNOWN_BYTES = 1 + 4


@pytest.fixture(scope="module")
def model():
    return build(tiny_config("llama", vocab_size=60), std=0.2, dtype=torch.float32)


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    tokenizer = kinds.add_template(kinds.char_bpe(), "<s>")
    tokens = kinds.save(tokenizer, tmp_path_factory.mktemp("tokenizer"))
    save_model(model, folder, {"tokenizer": "huggingface"}, sidecar_files=[*tokens.iterdir()])
    (folder.parent / "text.txt").write_text("\n".join(LINES))
    return folder


def test_bits_per_byte_of_an_evaluation(run, checkpoint, model):
    text = f"data.path={checkpoint.parent}/text.txt"
    request = (
        f"checkpoint={checkpoint}",
        "data=text",
        "data.sample_by=line",
        text,
        "split=all",
        *CPU,
    )
    code, out, err = run(evaluate_command, *request)
    assert code == 2
    assert "data.max_unknown_fraction=0.01: the text: 19.23% of its bytes are unknown" in err
    code, out, err = run(evaluate_command, *request, "data.max_unknown_fraction=0.2", "format=json")
    assert code == 0
    assert "warning: 19.23% of its bytes are unknown to the tokenizer ('😀', 'C')" in err

    tokenizer = load_tokenizer("huggingface", checkpoint)
    ids = torch.tensor([token for line in LINES for token in [1, *tokenizer.encode(line), 2]])
    with torch.no_grad():
        nats = cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="none")
    nats = float(nats[ids[1:] != 1].sum())  # what begins a text is not predicted
    num_bytes = sum(len(line.encode()) for line in LINES)
    record = json.loads(out)
    assert (record["bytes"], record["unknown_bytes"]) == (num_bytes, UNKNOWN_BYTES)
    expected = nats / math.log(2) / (num_bytes - UNKNOWN_BYTES)
    assert math.isclose(record["bits_per_byte"], expected, rel_tol=1e-5)


def test_a_prompt_of_which_a_part_or_nothing_is_left(run, checkpoint):
    request = (f"checkpoint={checkpoint}", "max_new_tokens=2", *CPU)
    code, _, err = run(generate_command, *request, "prompt=The Cat")
    assert code == 0
    assert "warning: 'The Cat': 28.57% of its bytes are unknown to the tokenizer ('C', 'T')" in err
    code, out, err = run(generate_command, *request, "prompt=XYZ 12")
    assert (code, out) == (2, "")
    assert "prompt='XYZ 12': nothing is left of it" in err
