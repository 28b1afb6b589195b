"""One plan on models that transformers made, of families other than Llama: they grow three times and learn."""

from __future__ import annotations

import json

import pytest
import torch

from growlm.checkpoint import load_model
from growlm.config import load_config
from growlm.data import load_tokenizer
from growlm.huggingface import to_huggingface
from growlm.training import run_plan
from tests.data.test_huggingface_tokenizer import byte_level, write
from tests.huggingface.hf_models import CONFIGS, load, make, tokens_for

SHAPE = {"num_hidden_layers": 2, "max_position_embeddings": 128, "eos_token_id": 0}
PLAN = (
    "phase_plan=grow_pretrained",
    "sequence_length=64",
    "data.documents=500",
    "trainer.validation_sequences=8",
    *(f"phases.{name}.steps={steps}" for name, steps in (("source", 20), ("moe", 20))),
    *(f"phases.{name}.steps=20" for name in ("wide", "deep")),
    *(f"phases.{name}.lr=2e-3" for name in ("source", "moe", "wide", "deep")),
    "logger=none",
)
LEAVES_AS = {"qwen3": "Qwen3MoeForCausalLM", "gemma2": "GrowLMForCausalLM"}


@pytest.mark.slow
@pytest.mark.parametrize("family", LEAVES_AS)
def test_it_learns_through_three_growths(tmp_path, family):
    write(tmp_path / "hf", byte_level)
    vocab_size = load_tokenizer("huggingface", tmp_path / "hf").vocab_size
    make(family, vocab_size=vocab_size, **SHAPE).save_pretrained(tmp_path / "hf")
    settings = f"model.path='{tmp_path / 'hf'}'", f"run_dir='{tmp_path / 'run'}'"

    # Whole copies keep the norms' epsilons, of which Qwen3's class has one.
    copies = "recipe=copies", "growth.scale_factor=2"
    run_dir = run_plan(load_config(*PLAN, *settings, *copies)).run_dir

    boundaries = json.loads((run_dir / "boundaries.json").read_text())
    assert len(boundaries) == 3
    assert max(abs(each["jump"]) for each in boundaries) < 1e-5
    phases = json.loads((run_dir / "summary.json").read_text())["phases"]
    losses = [each["val_loss"] for each in phases]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.3

    done = to_huggingface(run_dir / "checkpoints" / "large_moe_final", tmp_path / "out")
    assert done.class_name == LEAVES_AS[family]
    own_class = {"trust_remote_code": True} if family == "gemma2" else {}
    theirs = load(tmp_path / "out", **own_class)
    ours = load_model(run_dir / "checkpoints" / "large_moe_final")[0].eval()
    tokens = tokens_for(CONFIGS[family](**SHAPE, vocab_size=vocab_size))
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), atol=1e-5, rtol=1e-5)
