"""Attention through a feature map, whose cost is linear in length and whose state is fixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.attention import Declaration
from ...core.features import FeatureAttention
from ...core.heads import HeadsConfig
from ...core.linear import at_least_fp32


def _elu_plus_1(x: Tensor) -> Tensor:
    if torch.compiler.is_dynamo_compiling():  # which mistakes the strides of elu's own gradient
        above = F.relu(x)
        return (x - above).exp() + above
    return F.elu(x).add_(1)  # its gradient asks for x alone


FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": _elu_plus_1,
    "relu": F.relu,
    "softmax": lambda x: F.softmax(x, dim=-1),
}


class LinearAttention(FeatureAttention):
    """Weigh values by phi(q) . phi(k) in place of the softmax (Katharopoulos et al. 2020).

    Rotations turn the features in the numerator only; the normaliser sums them unturned, and so stays positive (Su et
    al. 2021, section 3.3).
    """

    declares: ClassVar[Declaration] = Declaration(
        can=frozenset({"causal", "two_sided", "cross", "documents", "rotate", "compile"}),
        lacks={
            "score": "it sums keys before any query meets them, so that there is no score to add a bias to",
            "pairs": "it sums keys before any query meets them, so that none can be hidden from one query alone",
        },
    )

    turns: ClassVar[Literal["before", "itself"]] = "itself"  # after the feature map, and never the normaliser

    @dataclass(frozen=True, kw_only=True)
    class Config(HeadsConfig):
        """feature_map: `elu` is elu(x) + 1, `relu`, or `softmax` over a head's entries (Shen et al. 2021)."""

        feature_map: Literal["elu", "relu", "softmax"] = "elu"

    def query_features(self, q: Tensor) -> Tensor:
        """Return phi of queries, scaled."""
        return self.key_features(q * self.scale)

    def key_features(self, k: Tensor) -> Tensor:
        """Return phi of keys."""
        return FEATURE_MAPS[self.config.feature_map](at_least_fp32(k))
