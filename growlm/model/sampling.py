"""Continuing a text."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from growlm.model.draws import generator_for
from growlm.model.transformer import TransformerLM


@torch.no_grad()
def sample_tokens(
    model: TransformerLM,
    prompt: Sequence[int],
    num_tokens: int,
    *,
    temperature: float,
    num_token_ids: int,
    stop_at: int | None = None,
    seed: int = 0,
) -> list[int]:
    """Sample a continuation, token by token.

    Args:
        model: Left in the mode it was in.
        prompt: At least one token.
        num_tokens: At most this many new ones; fewer where `stop_at` comes or the sequence is full.
        temperature: Divides the logits; 0 takes the likeliest token.
        num_token_ids: Ids from here on are not sampled: a model may have more rows than its tokenizer has tokens.
        stop_at: End after this token (it is left out).
        seed: Of the draws; the global generator is not touched.

    Returns:
        The new tokens, without the prompt.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    generator = generator_for("sample", seed)
    tokens = list(prompt)
    room = model.config.max_seq_len - len(tokens)
    try:
        for _ in range(min(num_tokens, room)):
            logits = (
                model(torch.tensor([tokens], device=device))[0, -1, :num_token_ids].float().cpu()
            )
            if temperature == 0:
                token = int(logits.argmax())
            else:
                probabilities = (logits / temperature).softmax(dim=-1)
                token = int(torch.multinomial(probabilities, 1, generator=generator))
            if token == stop_at:
                break
            tokens.append(token)
    finally:
        model.train(was_training)
    return tokens[len(prompt) :]
