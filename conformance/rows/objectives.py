"""Row 27: objectives ask for the right tokens, and their losses add up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...core.head import Head
from ...core.losses import IGNORED
from ...core.objective import Loss, Objective, Prepared
from ...core.topology import Output
from ...core.vocabulary import Vocabulary
from ..cases import Case
from ..places import Cases, once
from ..registered import row
from ..subjects import Subject
from ..trial import Trial

SIZE = 37
VOCABULARY = Vocabulary(SIZE, pad=0, bos=1, eos=2, mask=3, sentence_ends=(5, 9, 20))
KINDS = ("objective",)


class Projection(nn.Module):
    """Stand for a head by one product; `plain` says that it is no more than that."""

    def __init__(self, per_token: bool, plain: bool, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, 6, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(size, dtype=torch.float64))
        self.per_token = per_token
        self.plain = plain and per_token
        self.soft_cap = None

    def features(self, hidden: Tensor) -> Tensor:
        """Return hidden (..., C) as it is."""
        return hidden

    def projection(self) -> tuple[Tensor, Tensor] | None:
        """Return the product's weight (V, C) and bias (V,)."""
        return (self.weight, self.bias) if self.plain else None

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return logits of hidden (B, T, C): at each token, or of the mean."""
        return nn.functional.linear(hidden if self.per_token else hidden.mean(1), self.weight, self.bias)


def _objective(case: Case) -> Objective:
    return cast(Objective, case.cls.build(case.config, VOCABULARY))


def _batch(case: Case, rows: int, length: int, *, masked: bool = True) -> dict[str, Tensor]:
    """Return a raw batch with the fields that an objective reads, ragged where it is text."""
    batch: dict[str, Tensor] = {}
    labelled = not any(name.endswith("_ids") for name in case.cls.fields)
    for name in sorted(case.cls.fields | ({"input_ids"} if labelled else set())):
        if not name.endswith("_ids"):
            batch[name] = torch.randint(SIZE, (rows,))
            continue
        batch[name] = torch.randint(4, SIZE, (rows, length + case.cls.lookahead))
        if masked:
            mask = torch.ones_like(batch[name])
            mask[1:, -3:] = 0
            batch["attention_mask" if name == "input_ids" else name.replace("_ids", "_mask")] = mask
    return batch


def _prepare(case: Case, batch: dict[str, Tensor]) -> Prepared:
    return _objective(case).prepare(batch, torch.Generator().manual_seed(3))


def _hidden(case: Case, prepared: Prepared) -> Tensor:
    """Draw hidden states: of as many tokens as are asked for, or of the rows that the model reads."""
    shown = prepared.inputs["decoder_input_ids" if case.cls.sequences == 2 else "input_ids"]
    shape = prepared.targets.shape if prepared.targets.dim() == 2 and not case.cls.places else shown.shape[:2]
    return torch.randn(*shape, 6, dtype=torch.float64, requires_grad=True)


def _rows(tensor: Tensor | None, prepared: Prepared, rows: slice | list[int]) -> Any:
    """Return what belongs to some examples, of which each may have several rows."""
    if tensor is None:
        return None
    each = len(tensor) // len(prepared.targets)
    return tensor.unflatten(0, (-1, each))[rows].flatten(0, 1)


def _heads(case: Case) -> Iterator[Any]:
    """Yield a head that is a plain product, whose loss may be computed in chunks, and one that is not."""
    size = SIZE + _objective(case).extra_ids
    return (Projection(case.cls.per_token, plain, size) for plain in (True, False))


def _same(trial: Trial, got: Loss, want: Loss, what: str) -> None:
    trial.close(got.total, want.total, what=what)
    trial.holds(got.count == want.count, f"{what} counts other targets")
    sums = [{name: int(value) for name, value in loss.sums.items()} for loss in (got, want)]
    trial.holds(sums[0] == sums[1], f"{what} has other sums")


def alone(cases: Cases) -> Iterator[Subject]:
    """Put each objective that asks one head."""
    return once([case for case in cases if not _unless_alone(case.cls)])


def _unless_alone(cls: type[Any]) -> str:
    several = cls.heads.__func__ is not Objective.heads.__func__  # type: ignore[attr-defined]
    return "heads: it asks several, each with an objective of its own" if several else ""


def several(cases: Cases) -> Iterator[Subject]:
    """Put each objective that asks several heads."""
    return once([case for case in cases if _unless_alone(case.cls)])


def _unless_several(cls: type[Any]) -> str:
    return "" if _unless_alone(cls) else "heads: it asks one"


class Reader(nn.Module):
    """Stand for a model of several heads: a table of vectors, read at once or by a generator."""

    def __init__(self, heads: Mapping[str, type[Objective]]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(SIZE, 6, dtype=torch.float64))
        self.heads = nn.ModuleDict({name: Projection(asks.per_token, False, SIZE) for name, asks in heads.items()})

    def generate(self, input_ids: Tensor, **others: Tensor) -> Tensor:
        """Return the vectors of input_ids (B, T)."""
        return self.table[input_ids]

    def forward(self, input_ids: Tensor, logits: bool, **others: Tensor) -> Output:
        """Return the same as a model does."""
        return Output(None, self.table[input_ids])


def per_token(cases: Cases) -> Iterator[Subject]:
    """Put each objective that asks at each token."""
    return alone([case for case in cases if not _unless_per_token(case.cls)])


def _unless_per_token(cls: type[Any]) -> str:
    if cls.places:
        return "places: it asks for tokens of a row, not at each"
    return _unless_alone(cls) if cls.per_token else "per_token: it asks once a sequence"


def as_they_are(cases: Cases) -> Iterator[Subject]:
    """Put each objective that asks for the tokens of the data."""
    return per_token([case for case in cases if not case.cls.derives])


def _unless_as_they_are(cls: type[Any]) -> str:
    return "derives: it makes what it asks for" if cls.derives else _unless_per_token(cls)


def written(cases: Cases) -> Iterator[Subject]:
    """Put each objective that has a second sequence written."""
    return per_token([case for case in cases if case.cls.sequences == 2 and case.cls.asks_next])


def _unless_written(cls: type[Any]) -> str:
    return "" if cls.sequences == 2 and cls.asks_next else "sequences: nothing is written behind what is read"


@row(27, "preparing leaves the batch alone and follows the generator", kinds=KINDS, places=alone, excuse=_unless_alone)
def preparing(subject: Subject, trial: Trial) -> None:
    case = subject.case
    batch = _batch(case, trial.size("batch", (3,)), trial.size("length", (11, 23), least=4))
    copies = {name: tensor.clone() for name, tensor in batch.items()}
    before = torch.get_rng_state()
    one, other = _prepare(case, batch), _prepare(case, batch)
    trial.equal(before, torch.get_rng_state(), "a random number was drawn: torch's own generator")
    trial.holds(batch.keys() == copies.keys(), "the raw batch has other fields once it was prepared")
    for name, copy in copies.items():
        trial.equal(batch[name], copy, "the raw batch, once it was prepared,")
    trial.equal(one.targets, other.targets, "what the same generator's state gives")
    for name, tensor in one.inputs.items():
        trial.equal(tensor, other.inputs[name], "what the same generator's state gives")
    trial.holds(one.targets.dtype == torch.int64, "targets are not int64")
    trial.holds(one.count == (one.targets != IGNORED).sum() > 0, "nothing is asked for")


@row(27, "the loss in chunks equals the reference", kinds=KINDS, places=alone, excuse=_unless_alone)
def the_loss(subject: Subject, trial: Trial) -> None:
    case = subject.case
    # More tokens than a chunk of the loss holds, and no multiple of it.
    batch = _batch(case, trial.size("batch", (41,)), trial.size("length", (13, 31), least=4))
    prepared, objective = _prepare(case, batch), _objective(case)
    for head in _heads(case):
        hidden = _hidden(case, prepared)
        got, want = objective.loss(hidden, head, prepared), objective.reference(hidden, head, prepared)
        _same(trial, got, want, "the loss")
        with torch.no_grad():
            _same(trial, objective.loss(hidden, head, prepared), want, "the loss without gradients")
        wanted = (hidden, *head.parameters())
        # Together: what a head adds to all logits alike may have no gradient but the error of rounding.
        found, known = (torch.autograd.grad(loss.total, wanted) for loss in (got, want))
        one, other = (torch.cat([each.flatten() for each in grads]) for grads in (found, known))
        trial.close(one, other, what="a gradient")


@row(27, "what is ignored counts for nothing", kinds=KINDS, places=alone, excuse=_unless_alone)
def what_is_ignored(subject: Subject, trial: Trial) -> None:
    case = subject.case
    prepared = _prepare(case, _batch(case, 5, trial.size("length", (11,), least=4)))
    objective = _objective(case)
    targets = prepared.targets.clone()
    targets[2] = IGNORED
    rows = [0, 1, 3, 4]
    for head in _heads(case):
        hidden = _hidden(case, prepared)
        got = objective.loss(hidden, head, Prepared(prepared.inputs, targets, prepared.mask))
        kept, mask = _rows(hidden, prepared, rows), _rows(prepared.mask, prepared, rows)
        left = objective.loss(kept, cast(Head, head), Prepared(prepared.inputs, targets[rows], mask))
        _same(trial, got, left, "the loss of a batch with a row that is ignored")
        (found,) = torch.autograd.grad(got.total, hidden)
        trial.holds(not _rows(found, prepared, [2]).any(), "a gradient reaches a row that is ignored")
        nothing = Prepared(prepared.inputs, torch.full_like(targets, IGNORED), prepared.mask)
        none = objective.loss(hidden, head, nothing)
        trial.holds(none.total == 0 and none.count == 0, "without a target the loss is not 0")
        no_gradients = torch.autograd.grad(none.total, (hidden, *head.parameters()))
        trial.holds(not any(g.any() for g in no_gradients), "without a target there is a gradient, or NaN")


@row(27, "micro-batches add up", kinds=KINDS, places=alone, excuse=_unless_alone)
def micro_batches(subject: Subject, trial: Trial) -> None:
    case = subject.case
    prepared = _prepare(case, _batch(case, 7, trial.size("length", (11,), least=4)))
    objective = _objective(case)
    for head in _heads(case):
        hidden = _hidden(case, prepared)
        full = objective.loss(hidden, head, prepared)
        cuts = (slice(0, 3), slice(3, 4), slice(4, 7))
        parts = [
            objective.loss(
                _rows(hidden, prepared, cut),
                head,
                Prepared({}, prepared.targets[cut], _rows(prepared.mask, prepared, cut)),
            )
            for cut in cuts
        ]
        sums = {name: torch.stack([part.sums[name] for part in parts]).sum() for name in full.sums}
        total = Loss(torch.stack([p.total for p in parts]).sum(), torch.stack([p.count for p in parts]).sum(), sums)
        _same(trial, total, full, "the sum over micro-batches")


@row(27, "a target is the token that it should be", kinds=KINDS, places=as_they_are, excuse=_unless_as_they_are)
def a_target(subject: Subject, trial: Trial) -> None:
    # A label shifted by one is caught: ids that count up say where each target comes from.
    case, length, batch = subject.case, 11, trial.size("batch", (3,))
    fields = [name for name in sorted(case.cls.fields) if name.endswith("_ids")]
    counted = torch.arange(4, 4 + length + case.cls.lookahead).repeat(batch, 1)
    prepared = _prepare(case, dict.fromkeys(fields, counted))
    shown = prepared.inputs["decoder_input_ids" if case.cls.sequences == 2 else "input_ids"]
    asked = prepared.targets != IGNORED
    shapes = shown.shape == prepared.targets.shape == (batch, length)
    trial.holds(shapes, "targets and what is shown are not of `length` tokens", prepared.targets.shape)
    if case.cls.asks_next:
        trial.holds(asked.all(), "some token is not asked for its next")
        known = shown >= 4  # not the opening token
        trial.equal(prepared.targets[known], shown[known] + 1, "each target, with the token after the one shown,")
        trial.holds(known[:, 1:].all(), "a token is not shown")
        first = (prepared.targets[:, 0] - counted[:, 0]).unique().tolist()
        trial.holds(first == [int(bool(known[0, 0]))], "the first target is not the first that is not shown")
    else:
        trial.equal(prepared.targets[asked], counted[asked], "each target, with its own token,")
        trial.equal(shown[~asked], counted[~asked], "what is not asked for")
        trial.holds(not torch.equal(shown[asked], counted[asked]), "what is asked for is shown")


@row(27, "what is written is read one token later", kinds=KINDS, places=written, excuse=_unless_written)
def what_is_written(subject: Subject, trial: Trial) -> None:
    prepared = _prepare(
        subject.case, _batch(subject.case, trial.size("batch", (3,)), trial.size("length", (11, 40), least=4))
    )
    shown, wanted = prepared.inputs["decoder_input_ids"], prepared.targets
    asked = wanted[:, :-1] != IGNORED
    trial.holds(
        shown.shape == wanted.shape, "the decoder reads another number of tokens than are asked for", wanted.shape
    )
    trial.equal(shown[:, 1:][asked], wanted[:, :-1][asked], "what the decoder reads, with what was asked for before,")
    trial.holds(wanted.max() < SIZE + _objective(subject.case).extra_ids, "an id is beyond the declared ones")


@row(27, "padding is never asked for", kinds=KINDS, places=per_token, excuse=_unless_per_token)
def padding_is_never_asked_for(subject: Subject, trial: Trial) -> None:
    case, length = subject.case, trial.size("length", (11,), least=4)
    batch = _batch(case, trial.size("rows", (4,), least=2), length)
    prepared = _prepare(case, batch)
    last = [name for name in batch if name.endswith("_mask")][-1]
    mask = prepared.mask if case.cls.derives else batch[last][:, case.cls.lookahead :]
    assert mask is not None
    real = mask.bool()
    trial.holds((prepared.targets[~real] == IGNORED).all(), "padding is asked for")
    trial.holds((prepared.targets[real] != IGNORED).any(), "nothing real is asked for")
    trial.holds(prepared.targets.shape == mask.shape, "targets are not of the shape of their mask", mask.shape)
    whole = _prepare(case, _batch(case, 4, length, masked=False))
    trial.holds(whole.mask is None or not whole.mask.all(), "a batch without padding gets a mask")


def permuting(cases: Cases) -> Iterator[Subject]:
    """Put each objective that gives its rows an order of their own."""
    return once([case for case in cases if case.cls.permutes])


@row(27, "what is asked for comes last in the order", kinds=KINDS, places=permuting,
     excuse=lambda cls: "" if cls.permutes else "permutes: its rows have the order of their columns")  # fmt: skip
def what_comes_last(subject: Subject, trial: Trial) -> None:
    length = trial.size("length", (11, 23), least=4)
    batch = _batch(subject.case, trial.size("batch", (4,)), length)
    prepared = _prepare(subject.case, batch)
    ids, order, asked = (prepared.inputs[name] for name in ("input_ids", "order", "asked"))
    trial.equal(ids, batch["input_ids"], "what the model reads")
    trial.holds(order.shape == ids.shape and asked.shape == prepared.targets.shape, "shapes differ", order.shape)
    trial.holds(order.min() >= 1, "an order begins below 1, where only what is seen by all is")
    wanted = prepared.targets != IGNORED
    trial.equal(prepared.targets[wanted], ids.gather(1, asked)[wanted], "each target, with the token at its column,")
    for ranks, columns, there in zip(order, asked, wanted, strict=True):
        mine, last = ranks[columns[there]], torch.isin(torch.arange(ids.shape[1]), columns[there])
        given = ranks[~last]
        trial.holds(len(mine.unique()) == len(mine), "two tokens that are asked for have one place in the order")
        trial.holds(not len(given) or mine.min() > given.max(), "what is given comes after what is asked for")
    other = _objective(subject.case).prepare(batch, torch.Generator().manual_seed(4)).inputs["order"]
    trial.holds(not torch.equal(other, order), "the order is the same for other random numbers")


def streams(cases: Cases) -> Iterator[Subject]:
    """Put each objective that asks for the next token of one sequence."""
    return once([case for case in cases if case.cls.per_token and case.cls.asks_next and case.cls.sequences == 1])


def _unless_stream(cls: type[Any]) -> str:
    reads = cls.per_token and cls.asks_next and cls.sequences == 1
    return "" if reads else "asks_next: it does not go on a single sequence"


@row(27, "no document is asked for another's first token", kinds=KINDS, places=streams, excuse=_unless_stream)
def between_documents(subject: Subject, trial: Trial) -> None:
    batch = _batch(subject.case, 2, 11, masked=False)
    doc = torch.tensor([[0] * 5 + [1] * 7, [3] * 12])
    targets = _prepare(subject.case, batch | {"document_ids": doc}).targets
    ignored = (targets == IGNORED).nonzero().tolist()
    trial.holds(ignored == [[0, 4]], "the token before a document's first is asked for it")


@row(27, "each of several heads is asked what was announced", kinds=KINDS, places=several, excuse=_unless_several)
def of_several_heads(subject: Subject, trial: Trial) -> None:
    case, objective = subject.case, _objective(subject.case)
    batch = _batch(case, trial.size("batch", (5,), least=2), trial.size("length", (23,), least=8))
    copies = {name: tensor.clone() for name, tensor in batch.items()}
    prepared, again = _prepare(case, batch), _prepare(case, batch)
    trial.holds(all(torch.equal(batch[name], copy) for name, copy in copies.items()), "the raw batch is changed")
    trial.equal(prepared.counts, again.counts, "what the same generator's state gives")
    heads = case.cls.heads(case.config)
    trial.holds(len(prepared.counts) == len(heads) == len(objective.weights), "not each head has targets and a weight")
    model: Any = Reader(heads)
    asked = objective.asked(model, prepared)
    trial.holds(list(asked) == list(heads), "other heads are asked than it names", (len(asked),))
    for (name, each), count in zip(asked.items(), prepared.counts, strict=True):
        trial.holds(each.prepared.count == count, f"{name} is asked for another number of targets than announced")
        asks, head = each.objective, model.heads[name]
        got, want = (how(each.hidden, head, each.prepared) for how in (asks.loss, asks.reference))
        _same(trial, got, want, f"the loss of {name}")
    repeated = objective.asked(model, again)
    for name, each in asked.items():
        trial.equal(each.prepared.targets, repeated[name].prepared.targets, f"what {name} is asked of the same batch")
