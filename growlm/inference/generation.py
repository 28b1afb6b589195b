"""Batched text generation with a key/value cache.

Shapes: B sequences being continued, T tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from growlm.distributed.dtensors import get_full_tensor
from growlm.inference.sampling import Sampling, apply_repetition_penalty, sample_tokens
from growlm.model.keyed_rng import keyed_generator
from growlm.model.kv_cache import KeyValueCache
from growlm.model.transformer import TransformerLM
from growlm.runtime.errors import RunError

PREFILL_CHUNK_TOKENS = 8192
"""Number of prompt tokens read per forward pass, so that memory does not grow with the prompts."""

STOP, LENGTH, FULL = "stop", "length", "max_seq_len"


@dataclass
class Continuation:
    """The tokens generated for one prompt."""

    tokens: list[int] = field(default_factory=list)
    """New tokens, without the prompt and without the token that ended them."""
    finish_reason: str = LENGTH
    """Why generation ended.

    `stop`: a stop token was chosen; `length`: `max_new_tokens` were generated; `max_seq_len`: prompt and
    continuation reached the model's maximum length."""


@torch.inference_mode()
def generate(
    model: TransformerLM,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    *,
    seeds: Sequence[int] | int = 0,
    stop_tokens: Collection[int] = (),
    num_token_ids: int | None = None,
    on_token: Callable[[int, int], object] | None = None,
) -> list[Continuation]:
    """Continue prompts, given and returned as token ids, all in one batch.

    A continuation depends on its prompt, its seed and the settings but not on the other prompts, up to rounding
    differences between products of different sizes.

    Args:
        model: Model, whose train or eval mode is restored; it computes in its own or autocast's precision.
        prompts: Token ids, at least one per prompt.
        max_new_tokens: Largest number of new tokens per prompt.
        sampling: Sampling settings.
        seeds: One seed per prompt, or one for all; random numbers depend on seed and prompt. The global generator
            is not touched.
        stop_tokens: Tokens that end a continuation.
        num_token_ids: Number of ids that may be chosen; a model may have more rows than its tokenizer has ids.
        on_token: Function called with the prompt's index and each new token, as soon as it is chosen.

    Raises:
        ValueError: If a prompt is empty, or longer than the model can read.
        RunError: If the model's logits are not finite.
    """
    if not prompts or max_new_tokens < 1:
        return [Continuation() for _ in prompts]
    limit = model.config.max_seq_len
    for prompt in prompts:
        if not 0 < len(prompt) <= limit:
            raise ValueError(f"a prompt has {len(prompt)} tokens; must be 1 to {limit}")
    seeds = [seeds] * len(prompts) if isinstance(seeds, int) else seeds
    batch = _DecodingBatch(model, prompts, max_new_tokens, sampling, seeds, num_token_ids)
    was_training = model.training
    model.eval()
    try:
        hidden = batch.prefill()
        while tokens := batch.append_next_tokens(hidden, stop_tokens, on_token):
            hidden = batch.decode_step(tokens)
    finally:
        model.train(was_training)
    return batch.continuations


class _DecodingBatch:
    """The sequences being continued; finished ones are dropped once they are half of the batch."""

    def __init__(
        self,
        model: TransformerLM,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: Sampling,
        seeds: Sequence[int],
        num_token_ids: int | None,
    ) -> None:
        self.model, self.prompts, self.sampling = model, prompts, sampling
        self.device = model.embedding.weight.device
        # The whole parameter unless it must be cut: autocast caches the cast of a parameter, not of a slice.
        self.head = get_full_tensor(model.head_weight)
        if num_token_ids is not None and num_token_ids < len(self.head):
            self.head = self.head[:num_token_ids]
        bias = model.head_bias
        self.head_bias = None if bias is None else get_full_tensor(bias)[: len(self.head)]
        self.continuations = [Continuation() for _ in prompts]
        longest = max(len(prompt) for prompt in prompts)
        limit = model.config.max_seq_len
        self.max_lengths = [min(max_new_tokens, limit - len(prompt)) for prompt in prompts]
        self.is_truncated = [room < max_new_tokens for room in self.max_lengths]
        self.prompt_indices = list(range(len(prompts)))
        """Index of the prompt that each row of the batch continues."""
        self.unfinished = {row for row in self.prompt_indices if self._has_room(row)}
        padding = [longest - len(prompt) for prompt in prompts]
        self.tokens = torch.tensor(
            [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)],
            device=self.device,
        )
        self.num_slots = longest + max(self.max_lengths)
        self.padding = torch.tensor(padding, device=self.device)
        self.cache = self._make_cache()
        self.step = 0
        self.uniforms = (
            None if sampling.temperature == 0 else self._draw_uniforms(seeds, max(self.max_lengths))
        )
        self.seen_tokens = None if sampling.repetition_penalty == 1 else self._mark_seen_tokens()

    def _draw_uniforms(self, seeds: Sequence[int], count: int) -> Tensor:
        """Draw uniform random numbers for each prompt, (B, count)."""
        rows = [
            torch.rand(
                count, generator=keyed_generator("sample", seed, tuple(prompt)), dtype=torch.float64
            )
            for seed, prompt in zip(seeds, self.prompts, strict=True)
        ]
        return torch.stack(rows).to(self.device)

    def _mark_seen_tokens(self) -> Tensor:
        """Return which tokens each prompt contains, (B, V)."""
        seen = torch.zeros(len(self.prompts), len(self.head), dtype=torch.bool)
        for row, prompt in zip(seen, self.prompts, strict=True):
            row[[token for token in prompt if token < len(row)]] = True
        return seen.to(self.device)

    def _has_room(self, prompt: int) -> bool:
        continuation = self.continuations[prompt]
        if len(continuation.tokens) < self.max_lengths[prompt]:
            return True
        continuation.finish_reason = FULL if self.is_truncated[prompt] else LENGTH
        return False

    def _make_cache(self) -> KeyValueCache:
        length = self.tokens.shape[1]
        return KeyValueCache(self.model.config, self.num_slots, self.padding, length)

    def prefill(self) -> Tensor:
        """Read all tokens; return the final hidden state of each row's last token, (B, D)."""
        length = max(1, PREFILL_CHUNK_TOKENS // len(self.prompts))
        for chunk in self.tokens.split(length, dim=1):
            hidden = self.model.decode_step(chunk, self.cache)
        return hidden

    def decode_step(self, tokens: list[int]) -> Tensor:
        """Read one token per row; return its final hidden state, (B, D)."""
        new = torch.tensor(tokens, device=self.device).unsqueeze(1)
        if self.model.config.rope.scaling.kind == "longrope":
            self.tokens = torch.cat((self.tokens, new), dim=1)
        if self.cache.is_outdated_by(1):
            self.cache = self._make_cache()
            return self.prefill()
        return self.model.decode_step(new, self.cache)

    def append_next_tokens(
        self,
        hidden: Tensor,
        stop_tokens: Collection[int],
        on_token: Callable[[int, int], object] | None,
    ) -> list[int]:
        """Choose the next token of every row and append it to its continuation.

        Returns:
            The tokens to read next, one per row; empty when all sequences have ended.

        Raises:
            RunError: If the model's logits are not finite.
        """
        if not self.unfinished:
            return []
        tokens = self._sample(hidden).tolist()
        for prompt, token in zip(self.prompt_indices, tokens, strict=True):
            if prompt not in self.unfinished:
                continue
            if token < 0:
                raise RunError("the model's logits are not finite")
            if token in stop_tokens:
                self.continuations[prompt].finish_reason = STOP
                self.unfinished.discard(prompt)
                continue
            self.continuations[prompt].tokens.append(token)
            if on_token is not None:
                on_token(prompt, token)
            if not self._has_room(prompt):
                self.unfinished.discard(prompt)
        self.step += 1
        return self._drop_finished(tokens) if self.unfinished else []

    def _sample(self, hidden: Tensor) -> Tensor:
        logits = self.model.compute_logits(hidden, self.head, self.head_bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.seen_tokens is not None:
            logits = apply_repetition_penalty(
                logits, self.seen_tokens, self.sampling.repetition_penalty
            )
        uniforms = None if self.uniforms is None else self.uniforms[:, self.step]
        tokens = sample_tokens(logits, self.sampling, uniforms)
        if self.seen_tokens is not None:
            self.seen_tokens.scatter_(1, tokens.clamp(min=0).unsqueeze(1), True)
        return tokens

    def _drop_finished(self, tokens: list[int]) -> list[int]:
        if 2 * len(self.unfinished) > len(self.prompt_indices):
            return [max(0, token) for token in tokens]
        kept_rows = [
            row for row, prompt in enumerate(self.prompt_indices) if prompt in self.unfinished
        ]
        index = torch.tensor(kept_rows, device=self.device)
        self.cache.select_sequences(index)
        self.tokens, self.padding = self.tokens[index], self.padding[index]
        self.prompt_indices = [self.prompt_indices[row] for row in kept_rows]
        self.uniforms = None if self.uniforms is None else self.uniforms[index]
        self.seen_tokens = None if self.seen_tokens is None else self.seen_tokens[index]
        return [tokens[row] for row in kept_rows]
