"""The head that names a whole sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from ...core.activation import activate
from ...core.activation_names import Activation
from ...core.component import Part, Site
from ...core.embedding import Embedding
from ...core.head import Head
from ...core.linear import Linear
from ...core.pooling import Pool, pooled, pooled_reference


class ClassifierHead(Head):
    """Pool the hidden states of a sequence and score its classes."""

    per_token: ClassVar[bool] = False
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"n_classes": 5, "transform": "tanh", "width": 10},
        {"n_classes": 5, "transform": "silu", "transform_map": False},
    )

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """n_classes: what there is to choose from; 1 for one score, by which several sequences are compared; null for
        no scores: what is pooled is itself the answer, (B, C).

        pool: the `mean` of real tokens, the `first` or the `last` one, or the `max` of each entry. transform: map what
        is pooled and activate it first (tanh: the pooler of Devlin et al. 2019). transform_map: whether it is mapped,
        or activated alone. transform_bias: on that map. width: of what is scored; the model's when left out, and else
        what is pooled is mapped to it, plain where there is no transform. norm: of what is scored. bias: on the scores.
        """

        n_classes: int | None
        pool: Pool = "mean"
        transform: Activation | None = None
        transform_map: bool = True
        transform_bias: bool = True
        width: int | None = None
        norm: Annotated[Part | None, "norm"] = None
        bias: bool = True

        def __post_init__(self) -> None:
            if self.n_classes is not None and self.n_classes < 1:
                raise ValueError(f"n_classes: {self.n_classes} leaves nothing to score; at least 1")
            if self.width is not None and self.width < 1:
                raise ValueError(f"width: {self.width} is not a width; at least 1")
            if self.width is not None and not self.transform_map:
                raise ValueError("transform_map: what is pooled comes to a width of its own by a map; leave it out")

    config: Config

    def __init__(self, config: Config, site: Site, embedding: Embedding) -> None:
        super().__init__(config, site, embedding)
        width = config.width or site.d_model
        mapped = width != site.d_model or (config.transform is not None and config.transform_map)
        biased = config.transform is not None and config.transform_bias
        self.transform = Linear(site.d_model, width, bias=biased) if mapped else None
        self.norm = None if config.norm is None else config.norm.build(site.but(d_model=width))
        self.out = None if config.n_classes is None else Linear(width, config.n_classes, bias=config.bias)

    @property
    def pools(self) -> bool:
        """Say that it gives vectors where it has no classes to score."""
        return self.out is None

    @property
    def reads_all(self) -> bool:
        """Say whether it pools more than the last token."""
        return self.config.pool != "last"

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return logits (B, n_classes) for hidden (B, T, C), mask (B, T); a row without real tokens pools to 0."""
        return self._scores(pooled(self.config.pool, hidden, mask))

    def reference(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the same row by row."""
        return self._scores(pooled_reference(self.config.pool, hidden, mask))

    def _scores(self, vector: Tensor) -> Tensor:
        vector = vector if self.transform is None else self.transform(vector)
        vector = vector if self.config.transform is None else activate(self.config.transform, vector)
        vector = vector if self.norm is None else self.norm(vector)
        logits: Tensor = vector if self.out is None else self.out(vector)
        return logits
