"""Row 27: objectives ask for the right tokens, and their losses add up."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from transom.core.losses import IGNORED
from transom.core.objective import Loss, Objective, Prepared
from transom.core.vocabulary import Vocabulary

from . import harness
from .harness import Case

OBJECTIVES = harness.cases("objective")
PER_TOKEN = [case for case in OBJECTIVES if case.cls.per_token]
SIZE = 37
VOCABULARY = Vocabulary(SIZE, pad=0, bos=1, eos=2, mask=3)


class Projection(nn.Module):
    """Stand for a head by one product; `plain` says that it is no more than that."""

    def __init__(self, per_token: bool, plain: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(SIZE, 6, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(SIZE, dtype=torch.float64))
        self.per_token = per_token
        self.plain = plain and per_token

    def projection(self) -> tuple[Tensor, Tensor] | None:
        """Return the product's weight and bias."""
        return (self.weight, self.bias) if self.plain else None

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return logits at each token, or of the mean."""
        return nn.functional.linear(hidden if self.per_token else hidden.mean(1), self.weight, self.bias)


def _objective(case: Case) -> Objective:
    return case.cls.build(case.config, VOCABULARY)  # type: ignore[no-any-return]


def _batch(case: Case, rows: int, length: int, *, masked: bool = True) -> dict[str, Tensor]:
    """Return a raw batch with the fields that an objective reads, ragged where it is text."""
    batch: dict[str, Tensor] = {}
    for name in sorted(case.cls.fields | ({"input_ids"} if not case.cls.per_token else set())):
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


def _hidden(prepared: Prepared) -> Tensor:
    shape = prepared.targets.shape if prepared.targets.dim() == 2 else (len(prepared.targets), 5)
    return torch.randn(*shape, 6, dtype=torch.float64, requires_grad=True)


def _same(got: Loss, want: Loss) -> None:
    harness.close(got.total, want.total)
    assert got.count == want.count
    assert {name: int(value) for name, value in got.sums.items()} == {n: int(v) for n, v in want.sums.items()}


@pytest.mark.parametrize("case", OBJECTIVES, ids=str)
def test_row_27_preparing_leaves_the_batch_and_follows_the_generator(case: Case, rng: random.Random) -> None:
    batch = _batch(case, 3, rng.choice((11, 23)))
    copies = {name: tensor.clone() for name, tensor in batch.items()}
    before = torch.get_rng_state()
    one, other = _prepare(case, batch), _prepare(case, batch)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(batch[name], copy) for name, copy in copies.items())
    assert batch.keys() == copies.keys()
    assert torch.equal(one.targets, other.targets)
    assert all(torch.equal(tensor, other.inputs[name]) for name, tensor in one.inputs.items())
    assert one.targets.dtype == torch.int64
    assert one.count == (one.targets != IGNORED).sum() > 0


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("case", OBJECTIVES, ids=str)
def test_row_27_the_loss_equals_the_reference(case: Case, plain: bool, rng: random.Random) -> None:
    # More tokens than a chunk of the loss holds, and no multiple of it.
    prepared = _prepare(case, _batch(case, 41, rng.choice((13, 31))))
    head, hidden, objective = Projection(case.cls.per_token, plain), _hidden(prepared), _objective(case)
    got, want = objective.loss(hidden, head, prepared), objective.reference(hidden, head, prepared)  # type: ignore[arg-type]
    _same(got, want)
    with torch.no_grad():
        _same(objective.loss(hidden, head, prepared), want)  # type: ignore[arg-type]
    for one, other in zip(*(torch.autograd.grad(loss.total, (hidden, *head.parameters())) for loss in (got, want)),
                          strict=True):  # fmt: skip
        harness.close(one, other, what="gradient")


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("case", OBJECTIVES, ids=str)
def test_row_27_what_is_ignored_counts_for_nothing(case: Case, plain: bool) -> None:
    prepared = _prepare(case, _batch(case, 5, 11))
    head, hidden, objective = Projection(case.cls.per_token, plain), _hidden(prepared), _objective(case)
    targets = prepared.targets.clone()
    targets[2] = IGNORED
    rows = [0, 1, 3, 4]
    got = objective.loss(hidden, head, Prepared(prepared.inputs, targets, prepared.mask))  # type: ignore[arg-type]
    _same(got, objective.loss(hidden[rows], head, Prepared(prepared.inputs, targets[rows])))  # type: ignore[arg-type]
    (found,) = torch.autograd.grad(got.total, hidden)
    assert not found[2].any()
    none = objective.loss(hidden, head, Prepared(prepared.inputs, torch.full_like(targets, IGNORED)))  # type: ignore[arg-type]
    assert none.total == 0
    assert none.count == 0
    assert not any(g.any() for g in torch.autograd.grad(none.total, (hidden, *head.parameters())))


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("case", OBJECTIVES, ids=str)
def test_row_27_micro_batches_add_up(case: Case, plain: bool) -> None:
    prepared = _prepare(case, _batch(case, 7, 11))
    head, hidden, objective = Projection(case.cls.per_token, plain), _hidden(prepared), _objective(case)
    full = objective.loss(hidden, head, prepared)  # type: ignore[arg-type]
    parts = [objective.loss(hidden[s], head, Prepared({}, prepared.targets[s]))  # type: ignore[arg-type]
             for s in (slice(0, 3), slice(3, 4), slice(4, 7))]  # fmt: skip
    sums = {name: torch.stack([part.sums[name] for part in parts]).sum() for name in full.sums}
    _same(Loss(torch.stack([p.total for p in parts]).sum(), torch.stack([p.count for p in parts]).sum(), sums), full)


@pytest.mark.parametrize("case", PER_TOKEN, ids=str)
def test_row_27_a_target_is_the_token_that_it_should_be(case: Case) -> None:
    """A label shifted by one is caught: ids that count up say where each target comes from."""
    length = 11
    fields = [name for name in sorted(case.cls.fields) if name.endswith("_ids")]
    counted = torch.arange(4, 4 + length + case.cls.lookahead).repeat(3, 1)
    batch = dict.fromkeys(fields, counted)
    prepared = _prepare(case, batch)
    shown = prepared.inputs["decoder_input_ids" if case.cls.sequences == 2 else "input_ids"]
    asked = prepared.targets != IGNORED
    assert shown.shape == prepared.targets.shape == (3, length)
    if case.cls.asks_next:
        assert asked.all()
        known = shown >= 4  # not the opening token
        assert torch.equal(prepared.targets[known], shown[known] + 1)
        assert known[:, 1:].all()
        assert (prepared.targets[:, 0] - counted[:, 0]).unique().tolist() == [int(bool(known[0, 0]))]
    else:
        assert torch.equal(prepared.targets[asked], counted[asked])
        assert torch.equal(shown[~asked], counted[~asked])
        assert not torch.equal(shown[asked], counted[asked])


@pytest.mark.parametrize("case", PER_TOKEN, ids=str)
def test_row_27_padding_is_never_asked_for(case: Case) -> None:
    batch = _batch(case, 4, 11)
    prepared = _prepare(case, batch)
    last = [name for name in batch if name.endswith("_mask")][-1]
    real = batch[last][:, case.cls.lookahead :].bool()
    assert (prepared.targets[~real] == IGNORED).all()
    assert (prepared.targets[real] != IGNORED).any()
    whole = _prepare(case, _batch(case, 4, 11, masked=False))
    assert whole.mask is None


@pytest.mark.parametrize("case", [c for c in PER_TOKEN if c.cls.asks_next and c.cls.sequences == 1], ids=str)
def test_row_27_no_document_is_asked_for_another_s_first_token(case: Case) -> None:
    batch = _batch(case, 2, 11, masked=False)
    doc = torch.tensor([[0] * 5 + [1] * 7, [3] * 12])
    targets = _prepare(case, batch | {"document_ids": doc}).targets
    assert (targets == IGNORED).nonzero().tolist() == [[0, 4]]
