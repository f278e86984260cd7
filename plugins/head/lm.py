"""The head that predicts tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.activation import activate
from ...core.activation_names import Activation
from ...core.component import Part, Site
from ...core.context import Context
from ...core.embedding import Borrowed, Embedding
from ...core.head import Head
from ...core.linear import Linear
from ...core.moves import Layouts, Reshape, Take
from ...core.tokens import Tokens


class LmHead(Head):
    """Score every token of the vocabulary at each position (tied to the embedding: Press and Wolf 2017)."""

    per_token: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """tied: share the embedding's table. vocab_size: the embedding's when left out. bias: on the logits.

        width: of what is scored; the model's when left out, and the table's where it is shared. What is of the model's
        width is mapped to it, plain where there is no transform.

        feedforward: what is added to the hidden states first, each token's on its own (Zaheer et al. 2020). transform:
        map them and activate them (Devlin et al. 2019). transform_bias: on that map. norm: after these. scale: of the
        hidden states that are scored (rsqrt_d_model: d_model^-1/2, Raffel et al. 2020). soft_cap: how far logits may be
        from 0; they near it as a tanh does (Gemma Team 2024).
        """

        tied: bool = False
        vocab_size: int | None = None
        bias: bool = False
        width: int | None = None
        feedforward: Annotated[Part | None, "feedforward"] = None
        transform: Activation | None = None
        transform_bias: bool = True
        norm: Annotated[Part | None, "norm"] = None
        scale: float | Literal["rsqrt_d_model"] = 1.0
        soft_cap: float | None = None

        def __post_init__(self) -> None:
            if self.width is not None and self.width < 1:
                raise ValueError(f"width: {self.width} is not a width; at least 1")
            if self.width is not None and self.tied:
                raise ValueError("width: a tied head scores what is as wide as the embedding's table; leave it out")
            if self.soft_cap is not None and self.soft_cap <= 0.0:
                raise ValueError(f"soft_cap: {self.soft_cap} leaves logits no room; above 0")

    config: Config

    def __init__(self, config: Config, site: Site, embedding: Embedding) -> None:
        super().__init__(config, site, embedding)
        size = config.vocab_size or embedding.vocab_size
        if size is None:
            raise ValueError(f"vocab_size: needed, as embedding {embedding.name!r} reads no tokens")
        if config.tied and size != embedding.vocab_size:
            raise ValueError(f"tied: a head of {size} tokens can't share a table of {embedding.vocab_size or 'none'}")
        if config.feedforward is not None and config.feedforward.cls.mixes_tokens:
            raise ValueError("feedforward: its neighbours take part, and a head reads each token on its own")
        width = embedding.table().shape[1] if config.tied else config.width or site.d_model
        mapped = config.transform is not None or width != site.d_model
        self.scale = site.d_model**-0.5 if config.scale == "rsqrt_d_model" else config.scale
        biased = config.transform is not None and config.transform_bias
        self.feedforward = None if config.feedforward is None else config.feedforward.build(site)
        self.transform = Linear(site.d_model, width, bias=biased) if mapped else None
        self.norm = None if config.norm is None else config.norm.build(site.but(d_model=width))
        self.source = Borrowed(embedding) if config.tied else None
        self.weight = None if config.tied else nn.Parameter(torch.empty(size, width))
        self.bias = nn.Parameter(torch.empty(size)) if config.bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with small logits."""
        if self.weight is not None:
            nn.init.normal_(self.weight, std=self.site.d_model**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def layouts(self) -> Layouts:
        """Publish `plain`, its own names; or `row_bias`: the bias as one row (1, V), as BART's final_logits_bias."""
        if self.bias is None:
            return {"plain": {}}
        size = len(self.bias)
        return {"plain": {}, "row_bias": {"bias": Reshape(Take("bias"), (1, size), (size,))}}

    def features(self, hidden: Tensor) -> Tensor:
        """Return what is scored, (..., E), of hidden (..., C)."""
        if self.feedforward is not None:
            hidden = hidden + _each(self.feedforward, hidden)
        if self.transform is not None:
            hidden = self.transform(hidden)
            hidden = hidden if self.config.transform is None else activate(self.config.transform, hidden)
        if self.norm is not None:
            hidden = self.norm(hidden)
        return hidden if self.scale == 1.0 else hidden * self.scale

    @property
    def soft_cap(self) -> float | None:
        """Return the config's."""
        return self.config.soft_cap

    def projection(self) -> tuple[Tensor, Tensor | None]:
        """Return the table (V, E), the embedding's when tied, and the bias."""
        return self._table(), self.bias

    def _table(self) -> Tensor:
        table = self.source.table() if self.source is not None else self.weight
        assert isinstance(table, Tensor)
        return table

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return logits (B, T, V) for hidden (B, T, C)."""
        return self._capped(F.linear(self.features(hidden), *self.projection()))

    def reference(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the same as explicit sums over the width."""
        if self.feedforward is not None:
            hidden = hidden + _each(self.feedforward.reference, hidden)
        if self.transform is not None:
            weight, offset = self.transform.weight, self.transform.bias
            hidden = torch.einsum("btc,ec->bte", hidden, weight) + (0.0 if offset is None else offset)
            hidden = hidden if self.config.transform is None else activate(self.config.transform, hidden)
        if self.norm is not None:
            hidden = self.norm.reference(hidden)
        logits = torch.einsum("btc,vc->btv", hidden, self._table()) * self.scale
        return self._capped(logits if self.bias is None else logits + self.bias)

    def _capped(self, logits: Tensor) -> Tensor:
        cap = self.config.soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)


def _each(feedforward: Callable[..., Any], hidden: Tensor) -> Tensor:
    """Return what a feedforward makes of each token of hidden (..., C)."""
    rows = hidden.reshape(1, -1, hidden.shape[-1])
    tokens = Tokens(torch.arange(rows.shape[1], device=rows.device).unsqueeze(0))
    changed: Tensor = feedforward(rows, Context(tokens, causal=False))[0]
    return changed.reshape(hidden.shape)
