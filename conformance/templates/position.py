"""A learned penalty on scores that grows with the logarithm of distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transom.core import Position, Site, Tokens


class NewPosition(Position):
    """Lower each score by p log(1 + r d) for distance d, p and r being each head's own (Chi et al. 2022, "KERPLE")."""

    # What it does: `add` to embeddings, `rotate` queries and keys, add to a `score`; one or several.
    hooks: ClassVar[frozenset[str]] = frozenset({"score"})
    # Whether it stays as it is when all positions shift by the same amount.
    relative: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """std: the deviation of what p and r are drawn from at the start, before softplus makes them positive."""

        std: float = 0.5

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.weight = nn.Parameter(torch.empty(2, site.n_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the first values; a module fills here what it owns itself."""
        nn.init.normal_(self.weight, std=self.config.std)

    def score(self, q_tokens: Tokens, k_tokens: Tokens, q: Tensor, k: Tensor) -> Tensor:
        """Return what is added to the scaled scores, (B or 1, H, T, S), for tokens that may stand anywhere."""
        wide = torch.promote_types(q.dtype, torch.float32)
        penalty, rate = F.softplus(self.weight.to(wide))[:, None, :, None, None]
        distance = (q_tokens.pos.unsqueeze(2) - k_tokens.pos.unsqueeze(1)).abs().to(wide).unsqueeze(1)
        added: Tensor = -penalty * torch.log1p(rate * distance)
        return added
