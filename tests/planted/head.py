"""Heads that read the wrong token."""

from __future__ import annotations

from planted.fault import planted
from transom.registry.manager import get

LM, CLASSIFIER = get("head", "lm"), get("head", "classifier")


@planted(2, "differs")
class LastForFirst(CLASSIFIER):
    """Where the first token was chosen, the last is pooled."""

    def forward(self, hidden, mask=None):
        if self.config.pool != "first":
            return super().forward(hidden, mask)
        return self._scores(hidden.gather(1, self._last(hidden, mask)).squeeze(1))

    def _last(self, hidden, mask):
        rank = (hidden.new_ones(hidden.shape[:2]) if mask is None else mask).cumsum(1)
        return rank.argmax(1)[:, None, None].expand(-1, 1, hidden.shape[2])


@planted(7, "the logits of a row padded")
class PoolsPadding(CLASSIFIER):
    """The mean is of all columns: padding is pooled in."""

    def forward(self, hidden, mask=None):
        return super().forward(hidden, None)

    def reference(self, hidden, mask=None):
        return super().forward(hidden, None)


@planted(7, "differs")
class FirstColumn(CLASSIFIER):
    """The first column is read, where the first real token was meant: with padding on the left it is none."""

    def forward(self, hidden, mask=None):
        return super().forward(hidden, None if self.config.pool == "first" else mask)


@planted(7, "differs")
class CountsColumns(CLASSIFIER):
    """The sum over real tokens is divided by the number of columns."""

    def forward(self, hidden, mask=None):
        if mask is None or self.config.pool != "mean":
            return super().forward(hidden, mask)
        return self._scores((hidden * mask.unsqueeze(-1)).sum(1) / hidden.shape[1])


@planted(2, "differs")
class ProjectionWithoutBias(LM):
    """The projection that a loss in chunks takes lacks the bias, which the logits have."""

    def projection(self):
        found = super().projection()
        return None if found is None else (found[0], None)


@planted(7, "the logits of a row padded")
class ReadsTheTokenBefore(LM):
    """Each logit is read off the token before: the shift that the objective makes is made twice."""

    def forward(self, hidden, mask=None):
        return super().forward(hidden.roll(1, 1), mask)

    def reference(self, hidden, mask=None):
        return super().reference(hidden.roll(1, 1), mask)
