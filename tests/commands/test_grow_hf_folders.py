"""`growlm.grow` and `growlm.verify` on Hugging Face folders, as commands."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from growlm import grow as grow_command
from growlm import verify as verify_command
from growlm.checkpoint import save_model
from growlm.huggingface import to_huggingface
from tests.commands.processes import run_command
from tests.model.tiny_models import build, tiny_config

GROWTH = "grow=[{upcycle: {num_experts: 4}}, {widen: {scale_factor: 2, noise_std: 1e-3}}]"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A small Llama as transformers has it."""
    root = tmp_path_factory.mktemp("llama")
    save_model(build(tiny_config("llama"), dtype=torch.float32), root / "ours", {})
    to_huggingface(root / "ours", root / "hf")
    return root / "hf"


def test_grown_and_verified(run, llama, tmp_path):
    out = tmp_path / "out"
    code, printed, _ = run(grow_command, f"checkpoint={llama}", f"out={out}", GROWTH)
    assert code == 0
    assert "LlamaForCausalLM → MixtralForCausalLM, float32" in printed
    assert "converted" not in printed
    assert printed.splitlines()[-1].startswith(f"Wrote {out}: ")
    (out / "README.md").write_text("edited")
    code, printed, _ = run(verify_command, f"old={llama}", f"new={out}")
    assert code == 0
    assert "weight integrity" in printed
    assert printed.splitlines()[-1] == "passed"


def test_converted_grown_and_verified(run, llama, tmp_path):
    """The weights are rounded before the growth: the checks compare with what was grown."""
    out = tmp_path / "out"
    arguments = f"checkpoint={llama}", f"out={out}", "dtype=bfloat16", GROWTH
    code, printed, _ = run(grow_command, *arguments)
    assert code == 0
    converted = "Weights in float32 are converted to bfloat16 before the growth, which rounds them"
    assert printed.count(converted) == (out / "README.md").read_text().count(f"* {converted}") == 1
    code, printed, _ = run(verify_command, f"old={llama}", f"new={out}")
    assert "Note: weights of old are rounded to bfloat16, as new has them" in printed
    assert printed.splitlines()[-1] == "passed"
    assert code == 0
    tensors = load_file(out / "model.safetensors")
    tensors["model.embed_tokens.weight"][3] *= 1.01
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    (out / "manifest.json").unlink()
    code, printed, _ = run(verify_command, f"old={llama}", f"new={out}")
    assert printed.splitlines()[-1] == "failed: functional, weights"
    assert code == 1


@pytest.mark.slow
def test_a_tampered_folder_fails(run, llama, tmp_path):
    out = tmp_path / "out"
    run(grow_command, f"checkpoint={llama}", f"out={out}", GROWTH)
    tensors = load_file(out / "model.safetensors")
    name = next(each for each in tensors if "o_proj" in each)
    tensors[name] *= 1.5
    save_file(tensors, out / "model.safetensors")
    code, _, err = run(verify_command, f"old={llama}", f"new={out}")
    assert code == 2
    assert "is damaged" in err
    (out / "manifest.json").unlink()
    code, printed, _ = run(verify_command, f"old={llama}", f"new={out}")
    assert code == 1
    assert "weights" in printed.splitlines()[-1]


def test_a_dry_run_writes_nothing(run, llama, tmp_path, monkeypatch):
    arguments = [f"checkpoint={llama}", GROWTH, "dry_run=true"]
    code, printed, _ = run(grow_command, *arguments)
    assert code == 0
    assert "nothing has been written" in printed
    assert "LlamaForCausalLM → MixtralForCausalLM" in printed
    assert "weights on disk: " in printed
    assert "peak memory: about " in printed
    config = json.loads(printed.partition("config.json:")[2])
    assert config["num_local_experts"] == 4
    assert config["growlm"]["record"]["grown_from"]["seed"] == 0
    code, printed, _ = run(grow_command, *arguments, "architecture=growlm")
    assert "GrowLMForCausalLM (architecture=growlm)" in printed
    code, _, err = run(grow_command, *arguments, f"out={llama}")
    assert (code, "already exists" in err) == (2, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "out=???: must be given"),
        (["out=x", "to=gguf"], "to=gguf: must be one of huggingface, growlm"),
        (["out=x", "dtype=int4"], "dtype=int4: must be one of same"),
        (["out=x", "architecture=llama"], "architecture=llama: must be one of auto, growlm"),
        (["out=x", "optimizer_state=carry"], "a Hugging Face folder has no optimizer state"),
        (["out=x", "dry_run=true", "verify=true"], "verify=true: a dry run writes no weights"),
        (["out=x", "trust=[os]"], "code of a Hugging Face folder is never run"),
        (["out=x", "grow=[{widen: {scale_factor: 1.3}}]"], "grow.0.widen.scale_factor=1.3"),
    ],
)
def test_wrong_settings_of_grow(run, llama, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    growth = [] if any(each.startswith("grow=") for each in arguments) else [GROWTH]
    code, _, err = run(grow_command, f"checkpoint={llama}", *growth, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_only_what_is_needed_is_imported(llama, tmp_path):
    """Lightning, datasets and transformers take longer to import than a small model to grow."""
    code = """
import sys
import growlm.grow
growlm.grow.grow(sys.argv[1:])
heavy = ("lightning", "datasets", "transformers", "pandas", "sympy", "tokenizers", "torch._dynamo")
print([name for name in heavy if name in sys.modules])
"""
    command = [sys.executable, "-c", code, f"checkpoint={llama}", f"out={tmp_path / 'out'}", GROWTH]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_killed_half_way_nothing_loads(tmp_path):
    config = tiny_config("llama", d_model=512, d_ff=2048, n_layers=6, vocab_size=2048)
    save_model(build(config, dtype=torch.float32), tmp_path / "ours", {})
    for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        command = [sys.executable, "-m", "growlm.grow", f"checkpoint={tmp_path / 'ours'}"]
        command += [
            f"out={tmp_path / 'hf'}",
            "to=huggingface",
            "grow=[{upcycle: {num_experts: 8}}]",
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        partial = tmp_path / ".hf.partial" / "model.safetensors"
        while not (partial.exists() and partial.stat().st_size) and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(number)
        assert process.wait() == code
        assert not (tmp_path / "hf").exists()
        if number == signal.SIGTERM:
            assert os.listdir(tmp_path) == ["ours"]
    assert not (tmp_path / ".hf.partial" / "config.json").exists()
    done = run_command("growlm.grow", *command[3:], folder=tmp_path, streams=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "hf" / "README.md").exists()
    assert not (tmp_path / ".hf.partial").exists()
