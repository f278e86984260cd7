"""Images as sequences of patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.component import Site
from ...core.embedding import Embedding
from ...core.inputs import Input


class Patch2dEmbedding(Embedding):
    """Cut an image into squares and project each (Dosovitskiy et al. 2021)."""

    name: ClassVar[str] = "patch_2d"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """image_size, patch_size: pixels a side. channels: of the image. class_token: prepend a learned token."""

        image_size: int
        patch_size: int
        channels: int = 3
        class_token: bool = False

        def __post_init__(self) -> None:
            if self.patch_size < 1 or self.image_size % self.patch_size:
                raise ValueError(f"patch_size: {self.patch_size} does not divide image_size {self.image_size}")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        count = (config.image_size // config.patch_size) ** 2 + config.class_token
        if count > site.max_seq_len:
            raise ValueError(f"image_size: {count} patches, more than max_seq_len {site.max_seq_len}")
        self.weight = nn.Parameter(torch.empty(site.d_model, config.channels, config.patch_size, config.patch_size))
        self.bias = nn.Parameter(torch.empty(site.d_model))
        self.first = nn.Parameter(torch.empty(site.d_model)) if config.class_token else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw a projection that keeps the scale of its inputs."""
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)
        nn.init.zeros_(self.bias)
        if self.first is not None:
            nn.init.normal_(self.first, std=0.02)

    def inputs(self) -> Mapping[str, Input]:
        """Take `pixel_values` (B, channels, image_size, image_size)."""
        side = self.config.image_size
        return {"pixel_values": Input(("batch", self.config.channels, side, side), "float")}

    def forward(self, pixel_values: Tensor) -> Tensor:  # type: ignore[override]
        """Return (B, T, C), the patches row by row, for pixel_values (B, channels, image_size, image_size)."""
        patches = F.conv2d(pixel_values, self.weight, self.bias, stride=self.config.patch_size)
        return self._with_first(patches.flatten(2).transpose(1, 2))

    def reference(self, pixel_values: Tensor) -> Tensor:  # type: ignore[override]
        """Compute the same as a product with each cut-out square."""
        size = self.config.patch_size
        squares = F.unfold(pixel_values, size, stride=size).transpose(1, 2)
        return self._with_first(squares @ self.weight.flatten(1).T + self.bias)

    def _with_first(self, patches: Tensor) -> Tensor:
        if self.first is None:
            return patches
        return torch.cat([self.first.expand(patches.shape[0], 1, -1), patches], dim=1)
