"""Train a small model in a plain PyTorch loop, and grow it and its optimizer on the way.

    python examples/plain_loop.py

The text is this file. Growth keeps the model's function, and so its loss; the optimizer goes on with its moments.
"""

from pathlib import Path

import torch

from growlm.growth import Deepen, Upcycle, Widen, grow
from growlm.model import ModelConfig, TransformerLM
from growlm.verification import verify_functional_equivalence

TEXT = torch.tensor(list(Path(__file__).read_bytes()))
LENGTH = 64
GROWTHS = [
    [Upcycle(num_experts=4)],
    [Widen(scale_factor=1.5, new_channels="fresh"), Deepen(extra_layers=1)],
]


def draw_batch(generator: torch.Generator, size: int = 8) -> torch.Tensor:
    """Draw random windows of the text, (size, LENGTH + 1)."""
    starts = torch.randint(len(TEXT) - LENGTH, (size, 1), generator=generator)
    return TEXT[starts + torch.arange(LENGTH + 1)]


def train(model: TransformerLM, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Train for some steps, and print the loss before and after."""
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        loss = model.loss(draw_batch(generator))
        if step in (0, steps - 1):
            print(f"  step {step:3}: loss {loss.item():.4f}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    """Train, and grow before each further phase."""
    sizes = {"vocab_size": 256, "d_model": 64, "n_layers": 2, "n_heads": 4, "d_ff": 128}
    model = TransformerLM(ModelConfig(**sizes, max_seq_len=LENGTH))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    train(model, optimizer, steps=60)
    for operators in GROWTHS:
        old = model
        model, optimizer = grow(model, operators, optimizer=optimizer, optimizer_state="carry")
        report = verify_functional_equivalence(old, model, TEXT[None, :LENGTH], "cpu")
        parameters = sum(p.numel() for p in model.parameters())
        print(f"grown to {parameters:,} parameters; logits differ by {report.max_difference:.1e}")
        train(model, optimizer, steps=60)


if __name__ == "__main__":
    main()
