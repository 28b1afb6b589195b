"""Continuing texts, token by token, many at a time.

Shapes: B sequences being continued, T tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from growlm.distributed.dtensors import get_full_tensor
from growlm.inference.sampling import Sampling, apply_repetition_penalty, sample_tokens
from growlm.model.keyed_rng import keyed_generator
from growlm.model.kv_cache import KeyValueCache
from growlm.model.transformer import TransformerLM
from growlm.runtime.errors import RunError

PREFILL_CHUNK_TOKENS = 8192
"""Of the prompts, so many are read in one forward pass: what it holds in memory does not grow with them."""

STOP, LENGTH, FULL = "stop", "length", "max_seq_len"


@dataclass
class Continuation:
    """What follows a prompt."""

    tokens: list[int] = field(default_factory=list)
    """New tokens, without the prompt and without the token that ended them."""
    finish_reason: str = LENGTH
    """`stop`: a stop token came; `length`: as many tokens as were asked for; `max_seq_len`: prompt and
    continuation are as long as the model reads."""


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
    """Continue prompts, all in one batch.

    A continuation depends on its prompt, seed and the settings, not on the other prompts, up to the rounding of
    products of another size.

    Args:
        model: Left in the mode it was in; computes in its own precision, or in autocast's.
        prompts: Token ids, each at least one.
        max_new_tokens: At most this many new ones.
        sampling: How tokens are chosen.
        seeds: One for each prompt, or one for all; draws follow from seed and prompt. The global generator is not
            touched.
        stop_tokens: A continuation ends where one of these would come.
        num_token_ids: Ids from here on are not chosen: a model may have more rows than its tokenizer has tokens.
        on_token: Called with the prompt's index and the token, as soon as there is one.

    Raises:
        ValueError: If a prompt is empty, or longer than the model reads.
        RunError: If the model gives no finite logits.
    """
    if not prompts or max_new_tokens < 1:
        return [Continuation() for _ in prompts]
    limit = model.config.max_seq_len
    for prompt in prompts:
        if not 0 < len(prompt) <= limit:
            raise ValueError(f"a prompt of {len(prompt)} tokens; 1 to {limit} can be read")
    seeds = [seeds] * len(prompts) if isinstance(seeds, int) else seeds
    batch = _DecodingBatch(model, prompts, max_new_tokens, sampling, seeds, num_token_ids)
    was_training = model.training
    model.eval()
    try:
        stream = batch.prefill()
        while tokens := batch.append_next_tokens(stream, stop_tokens, on_token):
            stream = batch.decode_step(tokens)
    finally:
        model.train(was_training)
    return batch.continuations


class _DecodingBatch:
    """The sequences being continued; those that have ended leave once they are half of it."""

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
        self.head = get_full_tensor(
            model.head_weight
        )  # autocast keeps what it made of a parameter, not of a part
        if num_token_ids is not None and num_token_ids < len(self.head):
            self.head = self.head[:num_token_ids]
        self.continuations = [Continuation() for _ in prompts]
        longest = max(len(prompt) for prompt in prompts)
        limit = model.config.max_seq_len
        self.max_lengths = [min(max_new_tokens, limit - len(prompt)) for prompt in prompts]
        self.is_truncated = [room < max_new_tokens for room in self.max_lengths]
        self.prompt_indices = list(range(len(prompts)))
        """Which prompt each row of the batch continues."""
        self.unfinished = {row for row in self.prompt_indices if self._has_room(row)}
        padding = [longest - len(prompt) for prompt in prompts]
        self.tokens = torch.tensor(
            [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)],
            device=self.device,
        )
        slots = longest + max(self.max_lengths)
        self.cache = KeyValueCache(model.config, slots, torch.tensor(padding, device=self.device))
        self.step = 0
        self.uniforms = (
            None if sampling.temperature == 0 else self._draw_uniforms(seeds, max(self.max_lengths))
        )
        self.seen_tokens = None if sampling.repetition_penalty == 1 else self._mark_seen_tokens()

    def _draw_uniforms(self, seeds: Sequence[int], count: int) -> Tensor:
        """(B, count)."""
        rows = [
            torch.rand(
                count, generator=keyed_generator("sample", seed, tuple(prompt)), dtype=torch.float64
            )
            for seed, prompt in zip(seeds, self.prompts, strict=True)
        ]
        return torch.stack(rows).to(self.device)

    def _mark_seen_tokens(self) -> Tensor:
        """(B, V), whether a text has a token."""
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

    def prefill(self) -> Tensor:
        """The final stream of every prompt's last token, (B, D)."""
        length = max(1, PREFILL_CHUNK_TOKENS // len(self.prompts))
        for chunk in self.tokens.split(length, dim=1):
            stream = self.model.decode_step(chunk, self.cache)
        return stream

    def decode_step(self, tokens: list[int]) -> Tensor:
        """The final stream of the tokens just taken, one a row, (B, D)."""
        return self.model.decode_step(
            torch.tensor(tokens, device=self.device).unsqueeze(1), self.cache
        )

    def append_next_tokens(
        self,
        stream: Tensor,
        stop_tokens: Collection[int],
        on_token: Callable[[int, int], object] | None,
    ) -> list[int]:
        """Choose the next token of every row and give it to its continuation.

        Returns:
            What to read on with, one a row; empty at the end.

        Raises:
            RunError: If the model gives no finite logits.
        """
        if not self.unfinished:
            return []
        tokens = self._sample(stream).tolist()
        for prompt, token in zip(self.prompt_indices, tokens, strict=True):
            if prompt not in self.unfinished:
                continue
            if token < 0:
                raise RunError("the model's logits are not finite numbers")
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

    def _sample(self, stream: Tensor) -> Tensor:
        logits = F.linear(stream, self.head)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.seen_tokens is not None:
            logits = apply_repetition_penalty(
                logits, self.seen_tokens, self.sampling.repetition_penalty
            )
        draws = None if self.uniforms is None else self.uniforms[:, self.step]
        tokens = sample_tokens(logits, self.sampling, draws)
        if self.seen_tokens is not None:
            self.seen_tokens.scatter_(1, tokens.clamp(min=0).unsqueeze(1), True)
        return tokens

    def _drop_finished(self, tokens: list[int]) -> list[int]:
        if 2 * len(self.unfinished) > len(self.prompt_indices):
            return [max(0, token) for token in tokens]
        kept = [row for row, prompt in enumerate(self.prompt_indices) if prompt in self.unfinished]
        index = torch.tensor(kept, device=self.device)
        self.cache.select_sequences(index)
        self.prompt_indices = [self.prompt_indices[row] for row in kept]
        self.uniforms = None if self.uniforms is None else self.uniforms[index]
        self.seen_tokens = None if self.seen_tokens is None else self.seen_tokens[index]
        return [tokens[row] for row in kept]
