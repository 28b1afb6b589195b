"""The language model: embedding, blocks, final norm and head.

Shapes: B batch, T time, D residual channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from growlm.model.axes import Label, label, label_blocks, writes
from growlm.model.config import ModelConfig
from growlm.model.initialization import initialize_weights
from growlm.model.kv_cache import KeyValueCache, LayerCache
from growlm.model.layers.attention import Attention
from growlm.model.layers.document_masks import BlockDocuments, DocumentMasks
from growlm.model.layers.experts import Experts, MixtureOfExperts
from growlm.model.layers.feed_forward import FeedForward
from growlm.model.layers.labeled_layers import (
    apply_norm,
    label_embedding,
    labeled_linear,
    labeled_norm,
)
from growlm.model.layers.rotary import RotaryTables
from growlm.model.layers.routing import Routing, RoutingLog
from growlm.model.loss import cap_logits, linear_cross_entropy, matmul_dtype, token_losses
from growlm.runtime.errors import UserError


class Block(nn.Module):
    """A transformer block: attention and feed-forward, each added to the residual stream.

    Args:
        config: Config of the model.
        index: Index of the block.
    """

    def __init__(self, config: ModelConfig, index: int = 0) -> None:
        super().__init__()
        norm = config.norm
        self.parallel_residual, self.multiplier = norm.parallel_residual, norm.residual_multiplier
        pre, post = norm.placement != "post", norm.placement != "pre"
        self.attention_norm = labeled_norm(config) if pre else None
        self.attention = Attention(config, index)
        self.attention_post_norm = labeled_norm(config, ends_update=True) if post else None
        self.feed_forward_norm = labeled_norm(config) if pre and not norm.shared else None
        self.shares_norm = norm.shared
        is_mixture = config.is_mixture(index)
        self.feed_forward = MixtureOfExperts(config) if is_mixture else FeedForward(config)
        self.feed_forward_post_norm = labeled_norm(config, ends_update=True) if post else None

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        routings: RoutingLog | None = None,
        cache: LayerCache | None = None,
        documents: BlockDocuments | None = None,
    ) -> Tensor:
        """Return the residual stream (B, T, D) after this block, given the one before it (B, T, D)."""
        positions, mask = (None, None) if documents is None else documents
        normalized = _apply(self.attention_norm, x)
        update = self.attention(normalized, cos, sin, cache, mask)
        before, x = x, self._add(x, update, self.attention_post_norm)
        if not self.shares_norm:
            normalized = _apply(self.feed_forward_norm, before if self.parallel_residual else x)
        if isinstance(self.feed_forward, MixtureOfExperts):
            update = self.feed_forward(normalized, routings, positions)
        else:
            update = self.feed_forward(normalized)
        return self._add(x, update, self.feed_forward_post_norm)

    def _add(self, x: Tensor, update: Tensor, post_norm: nn.Module | None) -> Tensor:
        update = update if post_norm is None else apply_norm(post_norm, update)
        return x + (update if self.multiplier == 1 else update * self.multiplier)


def _apply(norm: nn.Module | None, x: Tensor) -> Tensor:
    normalized: Tensor = x if norm is None else norm(x)
    return normalized


def _make_table(rows: int, width: int) -> nn.Embedding:
    """Return an embedding without initial values: on the meta device they would load torch's compiler."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


class TransformerLM(nn.Module):
    """A causal language model.

    Args:
        config: Architecture of the model.
        seed: Seed of the initial weights, which depend on nothing else (see `initialization.py`).
        block_class: Class of the blocks.

    Attributes:
        recompute_blocks: Whether the backward pass recomputes every block, of which only the input is kept
            (activation checkpointing, Chen et al. 2016, arXiv 1604.06174). Training only.
        compile_blocks: Whether blocks are compiled, at the first training step. Training only.

    Raises:
        UserError: If the config is invalid.
    """

    def __init__(
        self, config: ModelConfig, seed: int = 0, block_class: type[Block] = Block
    ) -> None:
        super().__init__()
        config.validate()
        if config.vocab_size < 1:
            raise UserError("vocab_size", config.vocab_size, "must be at least 1")
        self.config = config
        self.recompute_blocks = self.compile_blocks = False
        self._compiled: list[Callable[..., Tensor]] = []
        self._block_class = block_class
        # On the meta device: torch's own initial values would cost time and advance the global generator.
        with torch.device("meta"):
            self._build(config)
        device = torch.get_default_device()
        if device.type != "meta":
            self.to_empty(device=device)
            initialize_weights(self, seed)

    def _build(self, config: ModelConfig) -> None:
        self.embedding = label_embedding(_make_table(config.vocab_size, config.d_model))
        self.position_embedding: nn.Embedding | None = None
        if config.embedding.positions == "learned":
            table = _make_table(config.axis_sizes()["positions"], config.d_model)
            self.position_embedding = label_embedding(table, over="positions")
        blocks = (self._block_class(config, i) for i in range(config.n_layers))
        self.blocks = label_blocks(nn.ModuleList(blocks))
        self.final_norm = labeled_norm(config, feeds_tied_head=config.tie_embeddings)
        has_bias = config.embedding.head_bias
        self.head = (
            None
            if config.tie_embeddings
            else labeled_linear(config, read="residual", write="vocabulary", bias=has_bias)
        )
        self.tied_head_bias: nn.Parameter | None = None
        if config.tie_embeddings and has_bias:
            self.tied_head_bias = nn.Parameter(torch.empty(config.vocab_size))
            label(self, tied_head_bias=Label((writes("vocabulary"),)))

    def forward(
        self,
        tokens: Tensor,
        routings: list[Routing] | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Return the next-token logits.

        Args:
            tokens: (B, T), T at most `max_seq_len`.
            routings: List that the routing of every mixture-of-experts layer is appended to, first layer first.
            positions: Position of each token in its document, (B, T), where a row packs several (see
                `document_positions`): attention then stays within documents, and the logits of each are those that
                it has alone. None for rows of one document each.

        Returns:
            The logits, (B, T, V).

        Raises:
            ValueError: If the sequence is too long.
        """
        hidden = self._forward_hidden(tokens, routings, positions)
        return self.compute_logits(hidden, self.head_weight, self.head_bias)

    def compute_logits(
        self, hidden: Tensor, head_weight: Tensor, head_bias: Tensor | None
    ) -> Tensor:
        """Return the logits of final hidden states.

        Args:
            hidden: (..., D).
            head_weight: The model's `head_weight`, or some rows of it, (V, D).
            head_bias: The same rows of its `head_bias`, (V,); None if the model has none.

        Returns:
            (..., V).
        """
        logits = F.linear(hidden, head_weight, head_bias)
        return cap_logits(logits, self.config.embedding.logit_softcap)

    def loss(
        self,
        batch: Tensor,
        routings: list[Routing] | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Return the mean next-token cross-entropy, in at least fp32, without holding all logits at once.

        Args:
            batch: Tokens, (B, T + 1).
            routings: As for `forward`.
            positions: As for `forward`, of all tokens of the batch, (B, T + 1).
        """
        positions = None if positions is None else positions[:, :-1]
        hidden = self._forward_hidden(batch[:, :-1], routings, positions).flatten(0, 1)
        softcap, targets = self.config.embedding.logit_softcap, batch[:, 1:].flatten()
        return linear_cross_entropy(hidden, self.head_weight, targets, softcap, self.head_bias)

    @torch.no_grad()
    def token_losses(
        self, batch: Tensor, score_mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Return the next-token cross-entropy of each token, in at least fp32.

        There is no gradient, and the logits are never held all at once.

        Args:
            batch: Tokens, (B, T + 1).
            score_mask: (B, T), which of the tokens after the first count; None for all.
            positions: As for `loss`.

        Returns:
            The losses of the tokens that count, row by row, (N,).
        """
        positions = None if positions is None else positions[:, :-1]
        hidden = self._forward_hidden(batch[:, :-1], positions=positions)
        targets = batch[:, 1:]
        hidden, targets = (
            (hidden.flatten(0, 1), targets.flatten())
            if score_mask is None
            else (hidden[score_mask], targets[score_mask])
        )
        softcap = self.config.embedding.logit_softcap
        return token_losses(hidden, self.head_weight, targets, softcap, self.head_bias)

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix, (V, D), which the final hidden state is multiplied with."""
        return self.embedding.weight if self.head is None else self.head.weight

    @property
    def head_bias(self) -> Tensor | None:
        """The head's bias, (V,); None if it has none."""
        return self.tied_head_bias if self.head is None else self.head.bias

    def last_hidden_state(
        self,
        tokens: Tensor,
        routings: list[Routing] | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Return the final hidden state, (B, T, D), which the head reads; see `forward`."""
        return self._forward_hidden(tokens, routings, positions)

    def _forward_hidden(
        self,
        tokens: Tensor,
        routings: list[Routing] | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        # Public methods do not call each other: under FSDP2 each of them gathers the weights and frees them.
        length = tokens.shape[1]
        if length > self.config.max_seq_len:
            raise ValueError(f"{length} tokens; max_seq_len is {self.config.max_seq_len}")
        masks: DocumentMasks | None = None
        if positions is None:
            x = self.embed(tokens, torch.arange(length, device=tokens.device))
            tables = RotaryTables.compute(length, self.config, x)
        else:
            x = self.embed(tokens, positions)
            # In the dtype of the queries, or every block would convert tables and masks for itself.
            dtype = matmul_dtype(x)
            tables = RotaryTables.compute_at(positions, self.config, x)
            tables = tables.map(lambda table: table.to(dtype))
            masks = DocumentMasks(positions, dtype)
        trains = self.training and torch.is_grad_enabled()
        blocks: Iterable[Callable[..., Tensor]] = self.blocks
        if trains and self.compile_blocks:
            blocks = self._compiled_blocks()
        for i, block in enumerate(blocks):
            cos, sin = tables.select(i)
            documents = None if masks is None else masks.select(self.config.block_window(i))
            # A log of its own, because a recomputed block logs again, and the compiler makes code for one length.
            log = None if routings is None else RoutingLog()
            arguments = (x, cos, sin, log, None, documents)
            if trains and self.recompute_blocks:
                x = checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(*arguments)
            if routings is not None and log is not None:
                routings += log.routings
        return self.finish(x)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Return the residual stream before the first block, (B, T, D).

        Args:
            tokens: (B, T).
            positions: Positions of the tokens in their sequences, (T,) or (B, T).
        """
        return self.add_positions(self.embedding(tokens), positions)

    def add_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return the residual stream before the first block from rows of the embedding, (B, T, D); see `embed`."""
        if (factor := self.config.embedding_factor) != 1:
            x = x * factor
        if self.position_embedding is None:
            return x
        # Sequences of a batch that are full go along until the others are, too.
        last = self.config.max_seq_len - 1
        rows = positions.clamp(max=last) + self.config.embedding.position_offset
        return x + self.position_embedding(rows)

    def finish(self, x: Tensor) -> Tensor:
        """Return the final hidden state, which the head reads, for the residual stream after the last block."""
        x = self.final_norm(x)
        factor = self.config.embedding.logit_multiplier
        return x if factor == 1 else x * factor

    def decode_step(self, tokens: Tensor, cache: KeyValueCache) -> Tensor:
        """Read tokens that follow the cached ones, and return the final hidden state of the last.

        Args:
            tokens: (B, T), T at least 1.
            cache: Cache of the tokens before these; it stores these tokens, too.

        Returns:
            (B, D); `compute_logits` gives the next token's logits.

        Raises:
            ValueError: If the cache is full.
        """
        tables = cache.extend(tokens.shape[1], self.embedding.weight)
        x = self.embed(tokens, cache.positions)
        for i, (block, layer) in enumerate(zip(self.blocks, cache.layers, strict=True)):
            cos, sin = tables.select(i)
            x = block(x, cos, sin, None, layer)
        return self.finish(x[:, -1])

    def _compiled_blocks(self) -> list[Callable[..., Tensor]]:
        if not self._compiled:
            for module in self.modules():
                if isinstance(module, Experts):
                    module.prepare_for_compile()
            # Every shape gets code of its own. Once a second width was seen, code for any width would be made,
            # which a CPU's compiler fails at (torch 2.13), and a resumed run, which has not seen the first, would
            # round differently.
            self._compiled = [torch.compile(block, dynamic=False) for block in self.blocks]
        return self._compiled
