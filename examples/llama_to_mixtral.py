"""Grow a Llama of transformers into a Mixtral, without losing what it computes.

    python examples/llama_to_mixtral.py

A real model comes from `AutoModelForCausalLM.from_pretrained(...)`; this one is small and random. The grown model
is an ordinary model of transformers: it trains with any trainer, and loads where growlm is not installed.
"""

import tempfile

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from growlm.growth import Deepen, Upcycle, grow
from growlm.verification import verify_functional_equivalence

SIZES = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Train on one batch of random tokens, and print the loss before and after."""
    tokens = torch.arange(64).view(2, 32) * 7 % 512
    for step in range(steps):
        loss = model(tokens, labels=tokens).loss
        if step in (0, steps - 1):
            print(f"  step {step:2}: loss {loss.item():.4f}")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    """Train a dense model, grow it and its optimizer, check, train on, save and load."""
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=4))
    optimizer = torch.optim.AdamW(llama.parameters(), lr=1e-3)
    train(llama, optimizer, steps=20)

    operators = [Upcycle(num_experts=8, top_k=2), Deepen(extra_layers=1)]
    mixtral, optimizer = grow(llama, operators, optimizer=optimizer)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (llama, mixtral)]
    print(f"{type(llama).__name__} of {sizes[0]:,} -> {type(mixtral).__name__} of {sizes[1]:,}")
    probe = torch.randint(512, (2, 32))
    report = verify_functional_equivalence(llama, mixtral, probe, "cpu")
    print(f"same function: {bool(report)}; logits differ by {report.max_difference:.1e}")
    train(mixtral, optimizer, steps=20)

    with tempfile.TemporaryDirectory() as folder:
        mixtral.save_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder)
    print(f"saved and loaded as {type(again).__name__}")


if __name__ == "__main__":
    main()
