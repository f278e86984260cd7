"""The model that a composed one is timed against: the same decoder written by hand in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layer(nn.Module):
    """One pre-norm layer: causal attention with rotary positions, then a gated feedforward."""

    def __init__(self, d_model: int, n_heads: int, n_kv_heads: int, d_ff: int) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, d_model // n_heads
        self.norm1 = nn.RMSNorm(d_model, eps=1e-6)
        self.qkv = nn.Linear(d_model, (n_heads + 2 * n_kv_heads) * self.head_dim, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.norm2 = nn.RMSNorm(d_model, eps=1e-6)
        self.gate_up = nn.Linear(d_model, 2 * d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        b, t, c = x.shape
        widths = [self.n_heads * self.head_dim] + [self.n_kv_heads * self.head_dim] * 2
        q, k, v = self.qkv(self.norm1(x)).split(widths, dim=-1)
        q = rotate(q.view(b, t, self.n_heads, self.head_dim), cos, sin)
        k = rotate(k.view(b, t, self.n_kv_heads, self.head_dim), cos, sin)
        v = v.view(b, t, self.n_kv_heads, self.head_dim)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            is_causal=past is None,
            enable_gqa=self.n_heads != self.n_kv_heads,
        )
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up), (k, v)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs (i, i + D/2) of each head."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Decoder(nn.Module):
    """A decoder with a tied head, as one writes it for one experiment."""

    def __init__(
        self, vocab: int, d_model: int, n_layers: int, n_heads: int, n_kv_heads: int, d_ff: int, length: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, d_model)
        self.layers = nn.ModuleList(Layer(d_model, n_heads, n_kv_heads, d_ff) for _ in range(n_layers))
        self.norm = nn.RMSNorm(d_model, eps=1e-6)
        width = d_model // n_heads
        angle = torch.outer(torch.arange(length).float(), 10000.0 ** (-torch.arange(0, width, 2).float() / width))
        self.register_buffer("cos", angle.cos()[None, :, None], persistent=False)
        self.register_buffer("sin", angle.sin()[None, :, None], persistent=False)

    def hidden(
        self, ids: Tensor, past: list[tuple[Tensor, Tensor]] | None = None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        start = 0 if past is None else past[0][0].shape[1]
        cos, sin = self.cos[:, start : start + ids.shape[1]], self.sin[:, start : start + ids.shape[1]]
        x = self.embedding(ids) * self.embedding.embedding_dim**0.5
        kept = []
        for i, layer in enumerate(self.layers):
            x, kv = layer(x, cos, sin, None if past is None else past[i])
            kept.append(kv)
        return self.norm(x), kept

    def step(self, ids: Tensor, past: list[tuple[Tensor, Tensor]] | None) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return the logits of new tokens and the next keys and values."""
        x, kept = self.hidden(ids, past)
        return F.linear(x, self.embedding.weight), kept

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy, from all logits at once."""
        x, _ = self.hidden(ids)
        return F.cross_entropy(F.linear(x, self.embedding.weight).flatten(0, 1), targets.flatten())


def copy_weights(model: Decoder, composed: nn.Module, *, share: bool = False) -> None:
    """Give a hand-written model the weights of a composed one; `share` the very tensors, for what only reads them."""
    names = {
        "attention.qkv": "qkv",
        "attention.out": "out",
        "feedforward.gate_up": "gate_up",
        "feedforward.down": "down",
        "attention_norm": "norm1",
        "feedforward_norm": "norm2",
    }
    renamed = {}
    for name, tensor in composed.state_dict().items():
        short = name.removeprefix("decoder.")
        for theirs, ours in names.items():
            short = short.replace(f".{theirs}.", f".{ours}.")
        renamed[short] = tensor
    model.load_state_dict(renamed, assign=share)
