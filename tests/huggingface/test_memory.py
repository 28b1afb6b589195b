"""Converting and growing take memory for about one tensor: measured, in processes of their own."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from growlm.checkpoint.checkpoint_folder import WEIGHTS_STEM, atomic_folder, write_config
from growlm.checkpoint.safetensors_io import TensorInfo, write_tensors
from growlm.huggingface.tensor_conversion import get_state_dict_shapes
from growlm.model import ModelConfig

MEASURED = """
import importlib, json, pathlib, sys
command = sys.argv[1]
module = importlib.import_module(f"growlm.{command}")

def memory(line):
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(x.split()[1]) for x in status if x.startswith(line))

baseline = memory("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
code = getattr(module, command)(sys.argv[2:])
print(json.dumps({"code": code, "baseline": baseline, "peak": memory("VmHWM") - baseline}))
"""

GROWN = """
import json, pathlib
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from growlm.growth import Upcycle, Widen, grow

def memory(line):
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(x.split()[1]) for x in status if x.startswith(line))

def llama(width, layers):
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    return LlamaForCausalLM(LlamaConfig(vocab_size=4096, num_attention_heads=4, **sizes))

def size(model):
    return sum(p.nbytes for p in model.parameters())

operators = [Upcycle(num_experts=4), Widen(scale_factor=2)]
grow(llama(16, 1), operators)  # what is loaded late
model = llama(512, 8)
baseline = memory("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")
grown = grow(model, operators)
peak, largest = memory("VmHWM") - baseline, max(p.nbytes for p in grown.parameters())
print(json.dumps({"peak": peak, "old": size(model), "new": size(grown), "largest": largest}))
"""


def measure(*arguments):
    """What a command printed, and its resident memory in bytes."""
    command = [sys.executable, "-c", MEASURED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["code"] == 0
    return result | {"printed": done.stdout}


def peak(*arguments):
    """Bytes of resident memory that a conversion takes above what its imports took; mapped files count."""
    return measure("convert", *arguments)["peak"]


def write_checkpoint(folder, config):
    """A checkpoint of random weights, never in memory at once; its size and its largest tensor's."""
    shapes = get_state_dict_shapes(config)
    entries = [TensorInfo(name, torch.float32, shape) for name, shape in shapes.items()]
    with atomic_folder(folder) as (partial, digests):
        digests |= write_tensors(
            partial, WEIGHTS_STEM, entries, lambda name: torch.randn(shapes[name])
        )
        write_config(partial, config, {})
    return sum(entry.nbytes for entry in entries), max(entry.nbytes for entry in entries)


def mixtral(d_model, d_ff, n_layers, vocab_size):
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=d_model // 64,
        n_kv_heads=d_model // 256,
        head_dim=64,
        d_ff=d_ff,
        norm="rmsnorm",
        feed_forward="swiglu",
        bias=False,
        tie_embeddings=False,
        num_experts=8,
    )


WAYS = {
    "to huggingface": ("ours", "hf", "to=huggingface"),
    "to growlm": ("hf", "back", "to=growlm"),
    "to growlm, bfloat16": ("hf", "half", "to=growlm", "dtype=bfloat16"),
}


def peaks(folder, config, ways=tuple(WAYS)):
    """What conversions take, in bytes, by name; and the size of the checkpoint and of its largest tensor."""
    size, largest = write_checkpoint(folder / "ours", config)
    found = {}
    for way in ways:
        source, out, *settings = WAYS[way]
        found[way] = peak(f"source={folder / source}", f"out={folder / out}", *settings)
        if out != "hf":
            shutil.rmtree(folder / out)
    shutil.rmtree(folder)
    return found, size, largest


@pytest.mark.slow
def test_a_small_checkpoint(tmp_path):
    ways = ("to huggingface", "to growlm, bfloat16")
    found, size, largest = peaks(tmp_path / "all", mixtral(256, 1024, 6, 8192), ways)
    assert size > 165e6 > 19 * largest
    assert max(found.values()) <= 130e6  # of which what torch loads late takes 85


@pytest.mark.slow
def test_two_gigabytes(tmp_path):
    found, size, largest = peaks(tmp_path / "all", mixtral(1024, 2816, 6, 50257))
    print({name: f"{each / 1e6:.0f} MB" for name, each in found.items()})
    print(f"{size / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB")
    assert size >= 2e9
    assert max(found.values()) <= 400e6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operator", "largest"),
    [
        ("deepen: {extra_layers: 3, placement: stack, init: copy}", 90e6),
        ("widen: {scale_factor: 2, noise_std: 1e-3}", 160e6),
        ("multiply_experts: {factor: 4}", 160e6),
    ],
)
def test_a_grown_folder_takes_what_its_plan_says(tmp_path, operator, largest):
    size, _ = write_checkpoint(tmp_path / "ours", mixtral(256, 1024, 6, 8192))
    arguments = (
        "grow",
        f"checkpoint={tmp_path / 'ours'}",
        f"grow=[{{{operator}}}]",
        "to=huggingface",
    )
    plan = measure(*arguments, "dry_run=true")
    line = next(line for line in plan["printed"].splitlines() if "peak memory" in line)
    estimate = float(line.split()[-2]) * 1e6
    real = measure(*arguments, f"out={tmp_path / 'hf'}")
    print(
        f"{size / 1e6:.0f} MB: {real['peak'] / 1e6:.0f} MB, {line.strip()}, {real['baseline'] / 1e6:.0f} MB"
    )
    assert real["peak"] <= largest
    assert real["baseline"] + real["peak"] <= estimate <= 2.5 * (real["baseline"] + real["peak"])


@pytest.mark.slow
def test_growth_of_a_model_in_memory():
    """Above the old model: the grown one, and a few of its tensors."""
    command = [sys.executable, "-c", GROWN]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print({name: f"{each / 1e6:.0f} MB" for name, each in found.items()})
    assert found["new"] > 500e6 > 4 * found["old"]
    assert found["new"] > 10 * found["largest"]
    assert found["peak"] <= found["new"] + 4 * found["largest"]
