"""The contract of objectives: from a raw batch to inputs and targets, and from hidden states to a loss."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from .component import Component
from .head import Head
from .linear import at_least_fp32
from .losses import IGNORED, PLAIN, Terms, linear_cross_entropy, summed_cross_entropy
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from .topology import Topology


@dataclass(frozen=True, eq=False)
class Prepared:
    """Hold a batch as a model takes it.

    `inputs`: the model's keyword inputs. `targets` int64: -100 where nothing is asked for. `mask` (B, T): the real
    tokens of the hidden states that a head reads; None when all are. `others`: the targets of further heads by name,
    where an objective asks several: `targets` are then the first one's.
    """

    inputs: Mapping[str, Tensor]
    targets: Tensor
    mask: Tensor | None = None
    others: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def count(self) -> Tensor:
        """Return how many targets there are of the first head, a scalar int64."""
        return (self.targets != IGNORED).sum()

    @property
    def counts(self) -> Tensor:
        """Return how many targets there are of each head, (N,) int64."""
        return torch.stack([(targets != IGNORED).sum() for targets in (self.targets, *self.others.values())])


@dataclass(frozen=True, eq=False)
class Loss:
    """Hold a loss as sums over targets, so that batches add up whatever their sizes.

    `total`: the summed loss, nats. `count`: targets. `sums`: further sums over targets by name, such as `correct`.
    """

    total: Tensor
    count: Tensor
    sums: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Asked:
    """Hold what one head is asked after a pass: the hidden states (B, T, C) that it reads, and which loss it has."""

    objective: Objective
    hidden: Tensor
    prepared: Prepared


@dataclass(frozen=True, kw_only=True)
class CrossEntropyConfig:
    """label_smoothing: the share of a target that all classes have in equal parts (Szegedy et al. 2016). z_loss: what
    the square of the logarithm of the logits' summed exponentials counts (Chowdhery et al. 2022). Both act in training
    alone: what is measured is the likelihood of targets.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for what is no share, or rewards what it should hold back."""
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing: {self.label_smoothing} is not a share of a target; from 0 to below 1")
        if self.z_loss < 0.0:
            raise ValueError(f"z_loss: {self.z_loss} would have logits grow; at least 0")


# Under other names: the class below takes these for its own attributes.
_Prepared = Prepared
_Loss = Loss
_Vocabulary = Vocabulary
_CrossEntropyConfig = CrossEntropyConfig
_IGNORED = IGNORED


class Objective(Component, ABC):
    """Say what a model is asked for.

    `fields`: the fields of a raw batch that it reads. `lookahead`: how many tokens more than `seq_len` a row of text
    needs. `per_token`: whether it asks at each token, or once a sequence. `sequences`: how many a model is given, one
    for each of its stacks. `asks_next`: whether a target is a later token of the last of them.
    `derives`: whether it makes what it asks for out of the data, instead of asking for tokens or labels as they are.
    `permutes`: whether its rows come with an order of their own and with columns that are asked for, for which its
    targets are: `order` and `asked` among the inputs.
    `logits`: how many logits it reads of each answer, where that is neither one a token nor one a class. `extra_ids`:
    how many ids beyond the tokenizer's it uses. `places`: whether targets (B, n) are places of tokens in their row, of
    which a head scores each. `trains`: names of stacks that it trains, where not every topology has them. `weights`:
    what the mean loss of each head counts in the loss of all.

    A `Config` that is a `CrossEntropyConfig` has the options of that loss.
    """

    Prepared: TypeAlias = _Prepared
    Loss: TypeAlias = _Loss
    Vocabulary: TypeAlias = _Vocabulary
    CrossEntropyConfig: TypeAlias = _CrossEntropyConfig
    IGNORED: ClassVar[int] = _IGNORED

    kind: ClassVar[str] = "objective"
    fields: frozenset[str]
    lookahead: int = 0
    per_token: ClassVar[bool] = True
    sequences: ClassVar[int] = 1
    asks_next: ClassVar[bool] = False
    derives: ClassVar[bool] = False
    permutes: ClassVar[bool] = False
    logits: ClassVar[int | None] = None
    places: ClassVar[bool] = False
    trains: ClassVar[frozenset[str]] = frozenset()
    weights: tuple[float, ...] = (1.0,)
    extra_ids: int = 0

    def __init__(self, config: Any, vocabulary: Vocabulary | None) -> None:
        self.config = config
        self.vocabulary = vocabulary

    @classmethod
    def heads(cls, config: Any) -> Mapping[str, type[Objective]]:
        """Say which heads it asks, and what kind of objective asks each; nothing where it asks the first one itself."""
        return {}

    @abstractmethod
    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Prepared:
        """Turn a raw batch into inputs and targets; all that is random is drawn from `generator` (on CPU).

        The batch holds the fields of the data by name: token ids and masks (B, T), with `document_ids` (B, T) where
        rows are packed, images (B, channels, height, width), labels (B,). T is `seq_len + lookahead` where a row is a
        stretch of a text.
        """

    def asked(self, model: Topology, prepared: Prepared) -> Mapping[str, Asked]:
        """Run a model on a batch, and return what each head is asked, by its name: in the order of `Prepared.counts`.

        Where an objective asks several heads, it says how; else the first reads the last hidden states.
        """
        hidden = model(**prepared.inputs, logits=False).hidden
        return {next(iter(model.heads)): Asked(self, hidden, prepared)}

    def loss(self, hidden: Tensor, head: Head, prepared: Prepared) -> Loss:
        """Return the summed loss of hidden (B, T, C), cross-entropy unless an objective says otherwise.

        A head that is a plain projection is applied in chunks, so that the (B, T, V) logits never exist.
        """
        projection = head.projection()
        targets = prepared.targets
        if projection is not None:
            read = head.features(hidden.flatten(0, -2))
            terms = replace(self._terms(), soft_cap=head.soft_cap)
            total, correct = linear_cross_entropy(read, *projection, targets.flatten(), terms)
            return Loss(total, prepared.count, {"correct": correct})
        return self.reference(hidden, head, prepared)

    def reference(self, hidden: Tensor, head: Head, prepared: Prepared) -> Loss:
        """Compute `loss` of hidden (B, T, C) from all logits at once."""
        logits = at_least_fp32(head(hidden, prepared.mask)).flatten(0, -2)
        targets = prepared.targets.flatten()
        total = summed_cross_entropy(logits, targets, self._terms())
        return Loss(total, prepared.count, {"correct": (logits.argmax(-1) == targets).sum()})

    def measured(self) -> Objective:
        """Return the objective whose loss tells how good a model is: this one, without what only training asks for."""
        if self._terms() == PLAIN:
            return self
        other = copy.copy(self)
        other.config = replace(self.config, label_smoothing=0.0, z_loss=0.0)
        return other

    def _terms(self) -> Terms:
        config = self.config
        return Terms(config.label_smoothing, config.z_loss) if isinstance(config, CrossEntropyConfig) else PLAIN
