"""One plan: a Llama that transformers made becomes a wider, deeper Mixtral that transformers reads."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoTokenizer

from growlm.checkpoint import load_model
from growlm.config import load_config
from growlm.data import embedded_documents, load_tokenizer
from growlm.huggingface import to_huggingface
from growlm.runtime.torchao_notices import suppress_torchao_notices
from growlm.training import run_plan
from tests.data.test_huggingface_tokenizer import byte_level, write

with suppress_torchao_notices():
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralForCausalLM

PLAN = (
    "phase_plan=grow_pretrained",
    "sequence_length=32",
    "data.documents=200",
    "verification.probe_length=32",
    "trainer.validation_sequences=4",
    "callbacks.sample_tokens=4",
    *(f"phases.{name}.steps=4" for name in ("moe", "wide", "deep")),
    *(f"phases.{name}.batch_size=4" for name in ("source", "moe", "wide", "deep")),
    "logger=none",
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Grouped queries, its own head, weights far from their initial values; a tokenizer beside it."""
    folder = tmp_path_factory.mktemp("llama")
    write(folder, byte_level)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=load_tokenizer("huggingface", folder).vocab_size,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=0.2,
            eos_token_id=0,
            bos_token_id=None,
        )
    ).eval()
    model.save_pretrained(folder)
    return folder


def plan(llama, run_dir, *overrides):
    settings = (f"model.path='{llama}'", f"run_dir='{run_dir}'", *overrides)
    return run_plan(load_config(*PLAN, *settings)).run_dir


def greedy(model, tokens, count):
    with torch.no_grad():
        return model.generate(
            tokens, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0
        )


def clearly_chosen(rows):
    """How many of the first tokens win by more than both models' rounding, on any processor."""
    best = rows.topk(2).values
    is_close = best[:, 0] - best[:, 1] <= 2e-4
    return int(is_close.nonzero()[0]) if is_close.any() else len(rows)


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


def test_nothing_is_lost_from_llama_to_mixtral(llama, tmp_path):
    steps = [f"phases.{name}.steps=0" for name in ("moe", "wide", "deep")]
    run_dir = plan(llama, tmp_path / "run", *steps, "growth.noise_std=0.02")
    out = tmp_path / "mixtral"
    to_huggingface(run_dir / "checkpoints" / "large_moe_final", out)
    before = LlamaForCausalLM.from_pretrained(llama).eval()
    after, loading = MixtralForCausalLM.from_pretrained(out, output_loading_info=True)
    after.eval()
    assert not any(loading.values())
    shape = after.config
    assert (shape.bos_token_id, shape.eos_token_id) == (None, 0)
    assert (shape.hidden_size, shape.num_hidden_layers, shape.num_local_experts) == (96, 4, 8)
    text = AutoTokenizer.from_pretrained(out)(next(embedded_documents(3, 1)), return_tensors="pt")
    tokens = text["input_ids"][:, :60]
    difference = (logits(after, tokens) - logits(before, tokens)).abs().max()
    assert difference <= 1e-4
    text = greedy(before, tokens, 50)
    clear = len(tokens[0]) + clearly_chosen(logits(before, text)[0, len(tokens[0]) - 1 : -1])
    assert greedy(after, tokens, 50)[0, :clear].tolist() == text[0, :clear].tolist()
    assert clear >= len(tokens[0]) + 5
    jumps = [b["jump"] for b in json.loads((run_dir / "boundaries.json").read_text())]
    assert max(map(abs, jumps)) < 1e-5


def test_trained_in_between_both_compute_the_same(llama, tmp_path):

    artefact = plan(llama, tmp_path / "run") / "checkpoints" / "large_moe_final"
    out = tmp_path / "mixtral"
    to_huggingface(artefact, out)
    ours, theirs = load_model(artefact)[0].eval(), MixtralForCausalLM.from_pretrained(out).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    encoder = load_tokenizer("huggingface", artefact)
    for document in embedded_documents(5, 3):
        tokens = torch.tensor([encoder.encode(document)[:128]])
        assert tokenizer(document)["input_ids"][:128] == tokens[0].tolist()
        torch.testing.assert_close(logits(theirs, tokens), ours(tokens), atol=1e-5, rtol=1e-5)
    trained = LlamaForCausalLM.from_pretrained(llama).eval()
    assert (logits(theirs, tokens) - logits(trained, tokens)).abs().max() > 1e-2
