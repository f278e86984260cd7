"""Embeddings that read other tokens than they are given, or in another order."""

from __future__ import annotations

import torch.nn.functional as F

from planted.fault import planted
from transom.core.inputs import Input
from transom.registry.manager import get

TOKEN, PATCH = get("embedding", "token"), get("embedding", "patch_2d")


@planted(2, "differs")
class ScaleForgotten(TOKEN):
    """The fast path leaves the option `scale` out."""

    def forward(self, input_ids, **given):
        return super().forward(input_ids, **given) / self.scale


@planted(2, "differs")
class RowWithoutGradient(TOKEN):
    """`padding_idx=0` is given, and token 0 is no padding here: its vector is never trained."""

    def forward(self, input_ids):
        x = F.embedding(input_ids, self.weight, padding_idx=0)
        return x if self.scale == 1.0 else x * self.scale


@planted(2, "differs")
class PatchesByColumn(PATCH):
    """Patches are laid out column by column, where row by row was meant."""

    def forward(self, pixel_values):
        patches = F.conv2d(pixel_values, self.weight, self.bias, stride=self.config.patch_size)
        return self._with_first(patches.transpose(2, 3).flatten(2).transpose(1, 2))


@planted(5, "left-out tokens")
class KnowsTheWholeRow(TOKEN):
    """The mean of the row is taken off, later tokens included: a causal model sees ahead through it."""

    def forward(self, input_ids):
        x = super().forward(input_ids)
        return x - x.mean(1, keepdim=True) if x.shape[1] else x

    def reference(self, input_ids):
        x = super().reference(input_ids)
        return x - x.mean(1, keepdim=True) if x.shape[1] else x


@planted(1, "IndexError")
class OneIdTooMany(TOKEN):
    """It declares ids up to `vocab_size`, and has `vocab_size` rows, from 0."""

    def inputs(self):
        return {"input_ids": Input(("batch", "sequence"), "int64", high=self.config.vocab_size + 1)}


@planted(0, "maskable")
class SaysItReadsText(PATCH):
    """It is declared maskable, and its columns are patches, of which no mask tells."""

    maskable = True


@planted(0, "`vocab_size` rows")
class OtherTable(TOKEN):
    """It lends a table with a row more, for padding, to a tied head than it says it has."""

    def table(self):
        return F.pad(self.weight, (0, 0, 0, 1))
