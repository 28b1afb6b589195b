"""`growlm.convert` as a command."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from growlm import convert as convert_command
from growlm.checkpoint import load_model, save_model
from growlm.model import parameter_report
from growlm.runtime.torchao_notices import suppress_torchao_notices
from tests.model.tiny_models import EXPERTS, assert_same_state, build, tiny_config


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process: exit code, output, errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            convert_command.main()
        out = capsys.readouterr()
        return ended.value.code, out.out, out.err

    return call


@pytest.fixture
def ours(tmp_path):
    folder = tmp_path / "ours, 'tiny'"
    config = tiny_config("llama", **EXPERTS, vocab_size=257)
    model = build(config, dtype=torch.float32)
    save_model(model, folder, {"tokenizer": "bytes", "phase": "moe"}, {})
    return folder


def test_all_types_of_mixed_files_are_named(run, tmp_path):
    model = build(tiny_config(vocab_size=257), dtype=torch.float32)
    model.embedding.bfloat16()
    save_model(model, tmp_path / "mixed", {})
    code, out, _ = run(f"source={tmp_path / 'mixed'}", f"out={tmp_path / 'hf'}", "to=huggingface")
    assert code == 0
    assert "parameters, bfloat16 and float32" in out
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "float32"


def test_out_and_in_again(run, ours, tmp_path):
    total = parameter_report(load_model(ours)[0]).total
    hf, back = tmp_path / "to, 'share'", tmp_path / "back"
    code, out, _ = run(f"source={ours}", f"out={hf}", "to=huggingface")
    assert code == 0
    assert f"MixtralForCausalLM: {total:,} parameters, float32" in out
    assert "tokenizer: bytes, as tokenizer.json" in out
    assert out.splitlines()[-1].startswith(f"Wrote {hf}: 62")

    code, out, _ = run(f"source={hf}", f"out={back}", "to=growlm", "dtype=bfloat16")
    assert code == 0
    assert f"MixtralForCausalLM: {total:,} parameters, bfloat16" in out
    assert "tokenizer: copied" in out
    model, record = load_model(back)
    assert record["phase"] == "moe"
    assert record["tokenizer"] == "huggingface"
    assert_same_state(model.state_dict(), load_model(ours)[0].bfloat16().state_dict())

    with suppress_torchao_notices():
        theirs = AutoModelForCausalLM.from_pretrained(hf)
    tokenizer = AutoTokenizer.from_pretrained(hf)
    prompt = tokenizer("Once upon a time", return_tensors="pt")
    assert theirs.generate(**prompt, max_new_tokens=3, do_sample=False).shape == (1, 19)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["to=onnx"], "to=onnx: must be one of huggingface, growlm"),
        ([], "to=???: must be given"),
        (["to=growlm"], "is a growlm checkpoint, not a Hugging Face model"),
        (
            ["to=growlm", "architecture=growlm"],
            "architecture=growlm: applies to to=huggingface only",
        ),
        (["to=huggingface", "dtype=int4"], "dtype=int4: must be one of same, float32"),
        (["to=huggingface", "format=gguf"], "no such key"),
        (["to=huggingface", "source=nowhere"], "source=nowhere: there is no such folder"),
    ],
)
def test_wrong_settings(run, ours, tmp_path, arguments, message):
    code, _, err = run(f"source={ours}", f"out={tmp_path / 'hf'}", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == [ours.name]


def test_help_of_convert(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    with pytest.raises(SystemExit, match="0"):
        convert_command.main()
    assert "to=huggingface" in capsys.readouterr().out


def test_a_killed_conversion_leaves_nothing(tmp_path):
    config = tiny_config(d_model=512, d_ff=2048, n_layers=6, vocab_size=2048)
    save_model(build(config, dtype=torch.float32), tmp_path / "ours", {})
    command = [sys.executable, "-m", "growlm.convert", f"source={tmp_path / 'ours'}"]
    out = tmp_path / "hf"
    command += [f"out={out}", "to=huggingface"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    partial = tmp_path / ".hf.partial" / "model.safetensors"
    while not (partial.exists() and partial.stat().st_size) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    assert os.listdir(tmp_path) == ["ours"]
