"""Softmax attention to compressed blocks, to the best of all blocks by their scores, and within a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core import sliced
from ...core.attention import Declaration, Headed, Mixer, is_exporting
from ...core.component import Site
from ...core.context import Context
from ...core.linear import Linear, at_least_fp32, exactly
from ...core.ring import head_write, ring_in_order, ring_tokens, ring_write
from ...core.selected import selected_attention
from ...core.softmax import softmax_attention, softmax_reference
from ...core.state import PAST, Declared, Memories, Remembered
from ...core.tokens import Tokens, join, visible
from ...core.window import window_blocks

TOGETHER = 256
"""Queries whose scores for compressed blocks are formed at once."""
LEAST = 64
"""Tokens up to which all scores are formed."""


class NativeSparseAttention(Mixer):
    """See a text in three ways, each with keys and values of its own (Yuan et al. 2025, "Native Sparse Attention").

    Compressed: every `stride` tokens a small network makes one key and one value of `span` tokens, to each of which its
    place among them is added first; it stands where its last token does. Chosen: of blocks of `block` tokens the first
    and the `near` nearest, and those besides whose tokens the compressed keys that cover them score best, by the
    softmax's weights summed over the heads of a group, `chosen` in all; a block that no complete one covers scores
    nothing, and is not chosen. Near: a window. The three are added, each head's by a sigmoid of the token.
    """

    chooses: ClassVar[str] = "blocks, by the scores of compressed ones"
    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"causal", "documents", "rotate", "score", "compile"}),
        lacks={
            "two_sided": "a token chooses among blocks by those that were complete before it, and none follows it",
            "cross": "blocks are stretches of one text up to a token, and a memory's tokens stand before none",
            "pairs": "its blocks follow the columns of one text",
        },
        time=1.5,  # the most of it linear, and compressed ones a share of a square, one in `stride`
        memory=1.3,  # and so are their masks
    )
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"n_heads": 6, "window": 3, "block": 2, "chosen": 3, "near": 1, "span": 2, "stride": 1},
        {"n_heads": 6, "n_kv_heads": 2, "window": 5, "block": 4, "chosen": 4, "span": 4, "stride": 2},
        {"n_heads": 4, "head_dim": 6, "window": 7, "block": 6, "chosen": 3, "near": 1, "span": 5, "stride": 3,
         "bias": True, "scale": 0.3},
    )  # fmt: skip

    @dataclass(frozen=True, kw_only=True)
    class Config(Headed):
        """n_heads: query heads. n_kv_heads: key heads, each shared by a group of query heads (all, when left out).

        head_dim: width of a head (d_model / n_heads). window: tokens seen of those nearest, the token itself included.
        block: tokens of a block that is chosen or not. chosen: how many are. near: of these always, the token's own and
        those before it. span: tokens that are compressed to one (half a block). stride: from one such span to the next
        (a quarter of a block). bias: on all maps. scale: of the scores (head_dim^-1/2).
        """

        n_heads: int
        n_kv_heads: int | None = None
        head_dim: int | None = None
        window: int = 512
        block: int = 64
        chosen: int = 16
        near: int = 2
        span: int | None = None
        stride: int | None = None
        bias: bool = False
        scale: float | None = None

        def __post_init__(self) -> None:
            for name in ("n_heads", "n_kv_heads", "head_dim", "window", "block", "near", "span", "stride"):
                value = getattr(self, name)
                if value is not None and value < 1:
                    raise ValueError(f"{name}: must be at least 1, not {value}")
            if self.n_kv_heads is not None and self.n_heads % self.n_kv_heads:
                raise ValueError(f"n_kv_heads: {self.n_kv_heads} do not divide {self.n_heads} query heads evenly")
            if self.block % self.spaced:
                raise ValueError(f"stride: {self.spaced} does not divide a block of {self.block}")
            if self.spaced > self.covered:
                raise ValueError(f"stride: {self.spaced} leaves tokens out between spans of {self.covered}")
            if self.window < self.covered:
                raise ValueError(f"window: {self.window} does not reach what no span of {self.covered} covers yet")
            if self.chosen <= self.near:
                raise ValueError(f"chosen: {self.chosen} leaves no choice beside the first and {self.near} near blocks")

        @property
        def spaced(self) -> int:
            """Return the tokens from one span to the next."""
            return self.stride or max(self.block // 4, 1)

        @property
        def covered(self) -> int:
            """Return the tokens of a span."""
            return self.span or max(self.block // 2, 1)

        def heads(self, d_model: int) -> tuple[int, int]:
            """Return the number and the width of the query heads: positions turn them whole."""
            if self.head_dim is None and d_model % self.n_heads:
                raise ValueError(
                    f"n_heads: {self.n_heads} heads do not divide d_model {d_model}; set head_dim, or n_heads"
                )
            return self.n_heads, self.head_dim or d_model // self.n_heads

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.n_heads, self.head_dim = config.heads(site.d_model)
        self.n_kv_heads = config.n_kv_heads or config.n_heads
        self.span, self.stride = config.covered, config.spaced
        self.scale = self.head_dim**-0.5 if config.scale is None else config.scale
        self.most = max((site.max_seq_len - self.span) // self.stride + 1, 1)
        heads, width = self.n_heads + 6 * self.n_kv_heads, self.head_dim
        self.up = Linear(site.d_model, heads * width, bias=config.bias)
        self.gate = Linear(site.d_model, 3 * self.n_heads, bias=config.bias)
        self.out = Linear(self.n_heads * width, site.d_model, bias=config.bias, gain=(2 * site.n_layers) ** -0.5)
        # Of keys and of values: places within a span, and the two maps of the network.
        self.places = nn.Parameter(torch.empty(2, self.span, width))
        self.inner = nn.Parameter(torch.empty(2, self.span * width, 2 * width))
        self.outer = nn.Parameter(torch.empty(2, 2 * width, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with a network that keeps the scale of what passes through."""
        nn.init.normal_(self.places, std=0.1)
        nn.init.normal_(self.inner, std=(self.span * self.head_dim) ** -0.5)
        nn.init.normal_(self.outer, std=2 * (2 * self.head_dim) ** -0.5)

    def declared(self) -> Declared:
        """Keep keys and values side by side: all that may be chosen, the window's, and what was compressed.

        And as they came those that the next spans are made of.
        """
        pair = (2, self.n_kv_heads, self.head_dim)
        return {
            "all": Remembered(("batch", PAST, *pair), "append"),
            "near": Remembered(("batch", self.config.window, *pair), "ring"),
            "tail": Remembered(("batch", self.span, *pair), "ring"),
            "compressed": Remembered(("batch", self.most, *pair), "fixed"),
        }

    def forward(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Mix a text from its beginning: for each block at once all queries that chose it, the window in slices.

        Documents, biases on scores, later steps, few tokens and graphs form all scores.
        """
        tokens, length = context.tokens, x.shape[1]
        begins = state is None or (tokens.first == 0 and context.slots is None)
        whole = tokens.doc is not None or context.scored or torch.compiler.is_compiling() or is_exporting()
        if whole or not begins or length <= LEAST:  # a graph leaves the length open, and is not asked for it
            return self.reference(x, context, state)
        q, kv = self._projected(x, context)
        packed, _ = self._compress(kv[:, :, 0], context, None)
        chosen = self._chosen(q, packed[:, :, 0], context)
        k, v = kv[:, :, 1].unbind(2)
        found = [
            self._from_compressed(q, packed),
            selected_attention(q, k, v, chosen, block=self.config.block, scale=self.scale),
            self._near(q, kv[:, :, 2], context),
        ]
        return self._merged(x, found), None if state is None else self._remembered(kv, context, state)

    def reference(self, x: Tensor, context: Context, state: Memories | None = None) -> tuple[Tensor, Memories | None]:
        """Compute all scores of each of the three ways, mask them, and take the softmax."""
        q, kv = self._projected(x, context)
        after = None if state is None else self._remembered(kv, context, state)
        tokens, keys = context.tokens, context.keys
        if state is None or after is None:
            packed, spans = self._compress(kv[:, :, 0], context, None)
            everything, near, close = kv[:, :, 1], tokens, kv[:, :, 2]
        else:
            assert context.seen is not None
            spans = self._spans(context, context.seen)
            packed, everything = after["compressed"], after["all"]
            near = join(ring_tokens(context.seen, self.config.window), tokens)
            close = torch.cat([state["near"], kv[:, :, 2]], dim=1)
        compressed, weights = self._dense(q, packed, spans, visible(tokens, spans, causal=True), context)
        chosen = self._chosen_of(weights, spans, context)
        taken = self._dense(q, everything, keys, self._among(chosen, tokens, keys), context)[0]
        distance = tokens.pos.unsqueeze(2) - near.pos.unsqueeze(1)
        shown = visible(tokens, near, causal=True) & (distance < self.config.window)
        return self._merged(x, [compressed, taken, self._dense(q, close, near, shown, context)[0]]), after

    def path(self, tokens: int) -> str:
        """Name the path."""
        if tokens <= LEAST:
            return "reference"
        return f"the queries of each block at once, {TOGETHER} for compressed ones; where scores are biased, reference"

    def _projected(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Return queries (B, T, H, D), turned, and what is compressed, chosen from and near, (B, T, 3, 2, K, D).

        The keys of the last two are turned; all are 0 at padding.
        """
        q, kv = self.up(x).unflatten(-1, (-1, self.head_dim)).split((self.n_heads, 6 * self.n_kv_heads), 2)
        kv = kv.unflatten(2, (3, 2, self.n_kv_heads))
        turned = context.rotate(torch.cat([q, kv[:, :, 1, 0], kv[:, :, 2, 0]], dim=2))
        q, chosen, near = turned.split((self.n_heads, self.n_kv_heads, self.n_kv_heads), 2)
        keys = torch.stack([kv[:, :, 0, 0], chosen, near], dim=2)
        kv = torch.stack([keys, kv[:, :, :, 1]], dim=3)
        valid = context.tokens.valid
        return q, kv if valid is None else kv.masked_fill(~valid[:, :, None, None, None, None], 0.0)

    def _merged(self, x: Tensor, found: list[Tensor]) -> Tensor:
        gates = torch.sigmoid(self.gate(x)).unflatten(-1, (3, self.n_heads, 1)).unbind(2)
        mixed = sum(gate * y for gate, y in zip(gates, found, strict=True))
        y: Tensor = self.out(mixed.flatten(-2))
        return y

    def _remembered(self, kv: Tensor, context: Context, state: Memories) -> Memories:
        assert context.seen is not None
        seen, length = context.seen, context.length
        before, after = self._complete(seen), self._complete(seen + (kv.shape[1] if length is None else length))
        packed, _ = self._compress(kv[:, :, 0], context, state["tail"])
        return {
            "all": context.append(state["all"], kv[:, :, 1]),
            "near": ring_write(state["near"], kv[:, :, 2], seen, length),
            "tail": ring_write(state["tail"], kv[:, :, 0], seen, length),
            "compressed": head_write(state["compressed"], packed, before, after - before),
        }

    def _complete(self, count: Tensor) -> Tensor:
        """Return how many spans are complete after `count` (B,) tokens."""
        return (torch.div(count - self.span, self.stride, rounding_mode="floor") + 1).clamp(min=0)

    def _spans(self, context: Context, seen: Tensor) -> Tokens:
        """Return where all spans of a state end, (B, N), those that are complete after the new tokens."""
        length = context.tokens.pos.shape[1] if context.length is None else context.length
        number = torch.arange(self.most, device=seen.device).unsqueeze(0)
        return Tokens(number * self.stride + self.span - 1, number < self._complete(seen + length).unsqueeze(1))

    def _compress(self, kv: Tensor, context: Context, tail: Tensor | None) -> tuple[Tensor, Tokens]:
        """Return the spans that end among new tokens kv (B, T, 2, K, D): (B, N, 2, K, D), keys turned, and where.

        `tail`: the ring of the tokens before them. Without documents they are in order, from the first that is new.
        """
        tokens, length = context.tokens, kv.shape[1]
        place = torch.arange(self.span, device=kv.device)
        if tokens.doc is not None:
            end = torch.arange(length, device=kv.device).unsqueeze(0)
            ends = (tokens.pos >= self.span - 1) & ((tokens.pos - self.span + 1) % self.stride == 0)
            spans = Tokens(tokens.pos, ends if tokens.valid is None else ends & tokens.valid, tokens.doc)
        else:
            seen = tokens.pos.new_zeros(1) if tail is None or context.seen is None else context.seen
            new = torch.arange(length // self.stride + 1, device=kv.device)
            last = (self._complete(seen).unsqueeze(1) + new) * self.stride + self.span - 1
            end = last - seen.unsqueeze(1)
            total = seen + (length if context.length is None else context.length)
            spans = Tokens(last, last < total.unsqueeze(1))
        around = kv.new_zeros(kv.shape[0], self.span, *kv.shape[2:])  # behind, for spans that are not complete
        before = around if tail is None or context.seen is None else ring_in_order(tail, context.seen)
        kv = torch.cat([before, kv, around], dim=1)
        index, width = (end.unsqueeze(-1) + 1 + place).flatten(1), 2 * self.n_kv_heads * self.head_dim
        taken = kv.flatten(2).gather(1, index.unsqueeze(-1).expand(kv.shape[0], -1, width))
        packed = self._network(taken.unflatten(1, (-1, self.span)).unflatten(-1, kv.shape[2:]))
        if context.positions is None or not context.rotates:
            return packed, spans
        where = Tokens(spans.pos.clamp(max=self.site.max_seq_len - 1))
        return torch.stack([context.positions.rotate(packed[:, :, 0], where), packed[:, :, 1]], dim=2), spans

    def _network(self, spans: Tensor) -> Tensor:
        """Return what is made of spans (B, N, span, 2, K, D), (B, N, 2, K, D)."""
        placed = spans.transpose(2, 3).transpose(3, 4) + self.places.unsqueeze(1)  # (B, N, 2, K, span, D)
        made: Tensor = F.silu(placed.flatten(-2) @ self.inner) @ self.outer
        return made

    def _dense(self, q: Tensor, kv: Tensor, keys: Tokens, mask: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Mix for q (B, T, H, D) of kv (B, S, 2, K, D) what mask (B or 1, T, S) shows, or (B, K, T, S) for groups.

        Returns (B, T, H, D) and the weights (B, H, T, S).
        """
        k, v = kv.unbind(2)
        bias = context.score(context.tokens, keys, q, k)
        if mask.dim() == 3:
            return softmax_reference(q, k, v, mask, bias, self.scale)
        shape = (q.shape[0], self.n_kv_heads)
        q = q.unflatten(2, (self.n_kv_heads, -1)).transpose(1, 2).flatten(0, 1)  # a group is a row
        k, v = (t.transpose(1, 2).flatten(0, 1).unsqueeze(2) for t in (k, v))
        if bias is not None:
            bias = bias.expand(shape[0], -1, -1, -1).unflatten(1, (self.n_kv_heads, -1)).flatten(0, 1)
        y, weights = softmax_reference(q, k, v, mask.flatten(0, 1), bias, self.scale)
        return y.unflatten(0, shape).transpose(1, 2).flatten(2, 3), weights.unflatten(0, shape).flatten(1, 2)

    def _chosen_of(self, weights: Tensor, spans: Tokens, context: Context) -> Tensor:
        """Return the blocks that are chosen, (B, T, K, N), by the weights (B, H, T, M) of `spans`."""
        block = self.config.block
        number = torch.arange(self._begun(context.keys), device=weights.device) * block
        end = spans.pos.unsqueeze(-1)
        first, last = torch.maximum(end - self.span + 1, number), torch.minimum(end, number + block - 1)
        shared = (last - first + 1).clamp(min=0).to(weights.dtype) / self.span  # (B or 1, M, blocks)
        weights = weights.detach().unflatten(1, (self.n_kv_heads, -1)).sum(2).transpose(1, 2)
        ranked = self._ranked(weights @ shared.unsqueeze(1), context.tokens.pos)
        return context.choose(self._best(ranked), lambda chosen: ranked.gather(-1, chosen))

    def _among(self, chosen: Tensor, tokens: Tokens, keys: Tokens) -> Tensor:
        """Return which tokens stand in blocks that were chosen (B, T, K, N), and are visible, (B, K, T, S) bool."""
        chose = torch.zeros(*chosen.shape[:3], self._begun(keys) + 1, device=chosen.device)
        chose = chose.scatter(-1, chosen + 1, 1.0)[..., 1:]  # none is written to a place of its own
        place = torch.div(keys.pos.clamp(min=0), self.config.block, rounding_mode="floor")
        taken = chose.gather(-1, place[:, None, None].expand(*chosen.shape[:3], -1)).transpose(1, 2) > 0
        return taken & visible(tokens, keys, causal=True).unsqueeze(1)

    def _begun(self, keys: Tokens) -> int:
        """Return how many blocks there may be of keys, and one or two more: a graph takes no size that may be 1."""
        return keys.pos.shape[1] // self.config.block + 2

    def _ranked(self, scores: Tensor, pos: Tensor) -> Tensor:
        """Return the scores of blocks (B, T, K, N) for queries at pos (B or 1, T), those above all that always count.

        0 for blocks that are not begun.
        """
        number = torch.arange(scores.shape[-1], device=scores.device)
        own = torch.div(pos, self.config.block, rounding_mode="floor")[:, :, None, None]
        always = (number == 0) | (number > own - self.config.near)
        return scores.masked_fill(always, self.n_heads + 1.0).masked_fill(number > own, 0.0)

    def _best(self, ranked: Tensor) -> Tensor:
        """Return the blocks of the highest scores, (B, T, K, chosen); -1 where none is left above 0."""
        found = F.pad(ranked, (0, self.config.chosen)).topk(self.config.chosen, dim=-1)
        return found.indices.masked_fill(found.values <= 0, -1)

    def _ended(self, stop: int) -> int:
        """Return how many spans end before a position."""
        return max((stop - self.span) // self.stride + 1, 0)

    def _from_compressed(self, q: Tensor, packed: Tensor) -> Tensor:
        """Mix compressed values for q (B, T, H, D), some queries at once, of packed (B, N, 2, K, D)."""
        found, (k, v) = [], packed.unbind(2)
        for start in range(0, q.shape[1], TOGETHER):
            part = q[:, start : start + TOGETHER]
            stop = start + part.shape[1]
            ended = self._ended(stop)
            mask = self._shown_spans(start, stop, ended, q.device).unsqueeze(0)
            found.append(
                softmax_attention(part, k[:, :ended], v[:, :ended], scale=self.scale, mask=mask)
                if ended
                else torch.zeros_like(part)
            )
        return torch.cat(found, dim=1)

    def _shown_spans(self, start: int, stop: int, ended: int, device: torch.device) -> Tensor:
        pos = torch.arange(start, stop, device=device).unsqueeze(1)
        return torch.arange(ended, device=device) * self.stride + self.span - 1 <= pos

    @torch.no_grad()
    def _chosen(self, q: Tensor, k: Tensor, context: Context) -> Tensor:
        """Return the blocks that q (B, T, H, D) choose by compressed keys k (B, N, K, D), (B, T, K, chosen)."""
        starts = range(0, q.shape[1], TOGETHER)
        best = torch.cat([self._best(self._scored(q, k, start)) for start in starts], dim=1)

        def score(chosen: Tensor) -> Tensor:
            return torch.cat([self._scored(q, k, start) for start in starts], dim=1).gather(-1, chosen)

        return context.choose(best, score)

    def _scored(self, q: Tensor, k: Tensor, start: int) -> Tensor:
        """Return the scores of all blocks for some queries from column `start` on, (B, T, K, blocks)."""
        length, block = q.shape[1], self.config.block
        stop = min(start + TOGETHER, length)
        ended, blocks = self._ended(stop), -(-stop // block)
        with exactly(q):
            part = at_least_fp32(q[:, start:stop]).unflatten(2, (self.n_kv_heads, -1)).transpose(1, 2)
            keys = at_least_fp32(k[:, :ended]).transpose(1, 2).unsqueeze(2)
            scores = (part.transpose(2, 3) @ keys.mT) * self.scale  # (B, K, G, T, N)
            shown = self._shown_spans(start, stop, ended, q.device)
            weights = scores.masked_fill(~shown, torch.finfo(scores.dtype).min).softmax(-1) * shown
            # A block is covered by the spans that begin in it, and by some that begin before.
            begun, ahead = block // self.stride, (self.span - 1) // self.stride
            weights = F.pad(weights.sum(2), (ahead, blocks * begun - ended))
            first = (torch.arange(begun + ahead, device=q.device) - ahead) * self.stride
            shared = (first + self.span).clamp(max=block) - first.clamp(min=0)
            scores = weights.unfold(-1, begun + ahead, begun) @ (shared.to(weights.dtype) / self.span)
        pos = torch.arange(start, stop, device=q.device).unsqueeze(0)
        return F.pad(self._ranked(scores.transpose(1, 2), pos), (0, -(-length // block) - blocks))

    def _near(self, q: Tensor, kv: Tensor, context: Context) -> Tensor:
        """Mix within the window."""
        window, length, (k, v) = self.config.window, q.shape[1], kv.unbind(2)
        if length <= window:
            return softmax_attention(q, k, v, scale=self.scale, causal=True)
        if sliced.takes(q, k, v, context):
            slices = context.tokens.once(
                ("window slices", window), lambda: sliced.window_slices(length, window, causal=True, device=q.device)
            )
            return sliced.sliced_attention(q, k, v, slices, scale=self.scale)
        cut = window_blocks(q, k, v, context, None, window=window, causal=True)
        distance = cut.q_tokens.pos.unsqueeze(2) - cut.k_tokens.pos.unsqueeze(1)
        shown = visible(cut.q_tokens, cut.k_tokens, causal=True) & (distance < window)
        return cut.mixed(shown, context, length, scale=self.scale)
