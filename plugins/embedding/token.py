"""The table of token vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.component import Part, Site
from ...core.embedding import Borrowed, Embedding
from ...core.inputs import Input
from ...core.linear import Linear
from ...core.moves import Layouts, Reshape, Take


class TokenEmbedding(Embedding):
    """Look tokens up in a learned table."""

    maskable: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """vocab_size: rows of the table. scale: what vectors are multiplied by (sqrt_d_model: Vaswani et al. 2017;
        bf16_sqrt_d_model: the same in eight bits, whatever the weights' dtype, as Botev et al. 2024 trained).

        Where the head is tied, the table starts small, for small logits: `sqrt_d_model` keeps the vectors from drowning
        in what the first layers add to them.

        n_types: how many types of token there are besides, each with a vector that is added (Devlin et al. 2019); 0 for
        none. norm: of the vectors once their positions are added. dropout: the rate of dropping entries after it.
        width: of the table, where it is narrower than the model (Clark et al. 2020). widen: whether the vectors are
        mapped to the model's width `first`, `before_norm`, once positions are added, or `last`. bias: on that map.
        blank: whether there is a vector for the places of tokens that are only asked for (Yang et al. 2019).
        """

        vocab_size: int
        scale: float | Literal["sqrt_d_model", "bf16_sqrt_d_model"] = 1.0
        n_types: int = 0
        norm: Annotated[Part | None, "norm"] = None
        dropout: float = 0.0
        width: int | None = None
        widen: Literal["last", "before_norm", "first"] = "last"
        bias: bool = False
        blank: bool = False

        def __post_init__(self) -> None:
            if self.vocab_size < 1:
                raise ValueError(f"vocab_size: {self.vocab_size} is not a number of tokens; at least 1")
            if self.n_types < 0:
                raise ValueError(f"n_types: {self.n_types} is not a number of types; at least 0")
            if self.width is not None and self.width < 1:
                raise ValueError(f"width: {self.width} is not a width; at least 1")
            if not 0.0 <= self.dropout < 1.0:
                raise ValueError(f"dropout: {self.dropout} is no rate; from 0 to below 1")

    config: Config

    def __init__(self, config: Config, site: Site, lender: TokenEmbedding | None = None) -> None:
        """Build the embedding for its site; with the table of a `lender` where there is one."""
        super().__init__(config, site)
        narrow = config.width or site.d_model if lender is None else lender.table().shape[1]
        self.vocab_size = config.vocab_size
        self.scale = _scale(config.scale, site.d_model)
        self.source = None if lender is None else Borrowed(lender)
        self.weight = nn.Parameter(torch.empty(config.vocab_size, narrow)) if lender is None else None
        self.types = nn.Parameter(torch.empty(config.n_types, narrow)) if config.n_types else None
        self.project = None if narrow == site.d_model else Linear(narrow, site.d_model, bias=config.bias)
        self.width = site.d_model if config.widen == "first" else narrow
        normed = narrow if config.widen == "last" else site.d_model
        self.norm = None if config.norm is None else config.norm.build(site.but(d_model=normed))
        self.blank = nn.Parameter(torch.empty(self.width)) if config.blank else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw vectors of norm about 1, so that a tied head starts with small logits."""
        for table in (self.weight, self.types):
            if table is not None:
                nn.init.normal_(table, std=table.shape[1] ** -0.5)
        if self.blank is not None:
            nn.init.normal_(self.blank, std=self.width**-0.5)

    def layouts(self) -> Layouts:
        """Publish `plain`, its own names; or `spread`: the blank as (1, 1, C), as XLNet's mask_emb."""
        if self.blank is None:
            return {"plain": {}}
        return {"plain": {}, "spread": {"blank": Reshape(Take("blank"), (1, 1, self.width), (self.width,))}}

    def inputs(self) -> Mapping[str, Input]:
        """Take `input_ids` (B, T) and, where there are types, `token_type_ids` (B, T), of type 0 when left out."""
        ids = {"input_ids": Input(("batch", "sequence"), "int64", high=self.config.vocab_size)}
        if self.types is None:
            return ids
        return ids | {"token_type_ids": Input(("batch", "sequence"), "int64", high=self.config.n_types, optional=True)}

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Return the vectors (B, T, width) of input_ids (B, T) int64, and of token_type_ids (B, T) int64."""
        x = F.embedding(input_ids, self.table())
        x = x if self.scale == 1.0 else x * self.scale
        if self.types is not None:
            x = x + (self.types[0] if token_type_ids is None else F.embedding(token_type_ids, self.types))
        return x if self.project is None or self.config.widen != "first" else self.project(x)

    def reference(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Compute the same as products with one-hot rows."""
        table = self.table()
        x: Tensor = F.one_hot(input_ids, self.config.vocab_size).to(table.dtype) @ table * self.scale
        if self.types is not None:
            kinds = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            x = x + F.one_hot(kinds, self.config.n_types).to(table.dtype) @ self.types
        return x if self.project is None or self.config.widen != "first" else self.project(x)

    def finish(self, x: Tensor) -> Tensor:
        """Norm x (B, T, width), drop some of its entries in training, and map it to (B, T, C) where it is narrower."""
        if self.project is not None and self.config.widen == "before_norm":
            x = self.project(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.config.dropout:
            x = F.dropout(x, self.config.dropout, self.training)
        return x if self.project is None or self.config.widen != "last" else self.project(x)

    def asking(self) -> Tensor:
        """Return the blank, (width,)."""
        return super().asking() if self.blank is None else self.blank

    def table(self) -> Tensor:
        """Return the table (V, E), the lender's where it is lent."""
        table = self.weight if self.source is None else self.source.table()
        assert isinstance(table, Tensor)
        return table

    def lend(self, site: Site) -> Embedding | Borrowed:
        """Lend the table alone: types, norm and map are each stack's own."""
        own = (self.types, self.project, self.norm)
        same = site.d_model == self.site.d_model and all(part is None for part in own)
        return Borrowed(self) if same else TokenEmbedding(self.config, site, self)


def _scale(named: float | str, d_model: int) -> float:
    """Return what vectors of a width are multiplied by."""
    if isinstance(named, float | int):
        return named
    root = d_model**0.5
    # In Python alone: under a meta device a tensor would have no value.
    mantissa, exponent = math.frexp(root)
    return root if named == "sqrt_d_model" else math.ldexp(round(mantissa * 256), exponent - 8)
