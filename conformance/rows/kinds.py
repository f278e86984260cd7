"""Rows 7, 17 and 26: what positions, norms, feedforwards and heads are each known by."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...core.context import Context
from ...core.position import Positions
from ...core.tokens import Tokens
from ..cases import D_MODEL, Case, site_of
from ..places import hook_of, hooks, once, only, pair, paired
from ..registered import row
from ..stacks import context, padded, position, scores, shaken, sublayer, vectors
from ..subjects import Subject
from ..trial import TOLERANCE, Trial, error, gradients


def _without(hook: str, cls: type) -> str:
    return "" if hook in cls.hooks else f"{hook}: not among its hooks"  # type: ignore[attr-defined]


def _absolute(cls: type[Any]) -> str:
    if cls.kind == "position" and not cls.relative:
        return "relative: it declares that a shift changes what it does"
    if cls.kind == "attention" and cls.chooses:
        return f"chooses: {cls.chooses}, which may be counted from a document's start"
    return "visible: its field is anchored at a document's start" if cls.kind == "attention" else ""


def _tokens(first: int, length: int) -> Tokens:
    return Tokens(torch.arange(first, first + length).unsqueeze(0))


SHIFTS = (3, 64, 101)


def _moves_along(subject: Subject) -> bool:
    """Say whether a shift has to change nothing."""
    case, chosen = pair(subject)
    # What is chosen is chosen from places that may be counted from a document's start.
    return bool(chosen.cls.relative) and not case.cls.chooses and _field_moves(case, subject.causal)


@functools.cache
def _field_moves(case: Case, causal: bool) -> bool:
    """Say whether an attention's field moves with its tokens: one that is anchored, as blocks are, does not."""
    layer: Any = sublayer(case, causal=causal)
    near = layer.visible(_tokens(0, 29), _tokens(0, 29))
    return all(torch.equal(layer.visible(_tokens(shift, 29), _tokens(shift, 29)), near) for shift in SHIFTS)


def _heads(batch: int, length: int) -> Tensor:
    return torch.randn(batch, length, 6, 6, dtype=torch.float64)


def _effect(subject: Subject, first: int, q: Tensor, k: Tensor) -> Tensor:
    """Return what a hook does at positions from `first` on: what it adds, or the products of what it turned."""
    module = position(subject.case)
    tokens = _tokens(first, q.shape[1])
    if subject.hook == "add":
        x = q.flatten(2)
        return module.add(x, tokens) - x
    if subject.hook == "score":
        return scores(module, tokens, tokens, q, k)
    return torch.einsum("bthd,bshd->bhts", module.rotate(q, tokens), module.rotate(k, tokens))


@row(17, "shifting all positions", kinds=("position",), places=hooks)
@torch.no_grad()
def shifting_all_positions(subject: Subject, trial: Trial) -> None:
    length, shift = trial.size("length", (7, 23), least=2), trial.size("shift", (1, 19, 150))
    q, k = (_heads(trial.size("batch", (2,)), length) for _ in range(2))
    moved, still = _effect(subject, shift, q, k), _effect(subject, 0, q, k)
    if subject.case.cls.relative:
        trial.close(moved, still, what="what a relative position does at shifted places")
    else:
        trial.apart(moved, still, "a shift changes nothing, and `relative` is not declared")


@row(17, "an offset equals a slice", kinds=("position",), places=hooks)
@torch.no_grad()
def an_offset(subject: Subject, trial: Trial) -> None:
    batch, length = trial.size("batch", (2,)), trial.size("length", (29,), least=2)
    offset = trial.place(1, length - 1)
    module = position(subject.case)
    q, k = (_heads(batch, length) for _ in range(2))
    whole, part = _tokens(0, length), _tokens(offset, length - offset)
    real = torch.ones(batch, length - offset, dtype=torch.bool)
    for rows in (part, whole[offset:], Tokens(part.pos.expand(batch, -1), real)):
        if subject.hook == "score":
            got, want = scores(module, rows, whole, q[:, offset:], k), scores(module, whole, whole, q, k)[:, :, offset:]
            trial.holds(got.shape[0] in (1, batch), "scores are of another number of rows", got.shape)
            trial.close(got.expand(batch, -1, -1, -1), want.expand(batch, -1, -1, -1))
        else:
            x = q.flatten(2) if subject.hook == "add" else q
            hook = getattr(module, subject.hook)
            trial.close(hook(x[:, offset:], rows), hook(x, whole)[:, offset:])


@row(17, "scores stand at any gathered tokens", kinds=("position",), places=partial(hook_of, "score"),
     excuse=partial(_without, "score"))  # fmt: skip
@torch.no_grad()
def scores_at_any_tokens(subject: Subject, trial: Trial) -> None:
    module, length = position(subject.case), trial.size("length", (23,), least=2)
    q, tokens, order = _heads(1, length), _tokens(0, length), torch.randperm(length)
    turned = tokens.map(lambda t: t[:, order])
    want = scores(module, tokens, tokens, q, q)
    trial.close(scores(module, turned, tokens, q[:, order], q), want[:, :, order], what="scores of gathered queries")
    trial.close(scores(module, tokens, turned, q, q[:, order]), want[..., order], what="scores of gathered keys")


@row(17, "a turn keeps lengths", kinds=("position",), places=partial(hook_of, "rotate"),
     excuse=partial(_without, "rotate"))  # fmt: skip
@torch.no_grad()
def a_turn_keeps_lengths(subject: Subject, trial: Trial) -> None:
    q = _heads(trial.size("batch", (2,)), trial.size("length", (23,), least=2))
    turned = position(subject.case).rotate(q, _tokens(0, q.shape[1]))
    trial.close(turned.norm(dim=-1), q.norm(dim=-1), what="a turned vector's length")
    trial.close(turned[:, 0], q[:, 0], what="what is turned at position 0")
    trial.apart(turned[:, 1:], q[:, 1:], "nothing is turned")


@row(
    17,
    "shifting a whole layer",
    kinds=("attention", "position"),
    places=partial(only, _moves_along, paired),
    excuse=_absolute,
)
@torch.no_grad()
def shifting_a_layer(subject: Subject, trial: Trial) -> None:
    case, chosen = pair(subject)
    length, shift = trial.size("length", (29,), least=2), trial.size("shift", SHIFTS)
    layer = sublayer(case, causal=subject.causal)
    positions = Positions([position(chosen, case, causal=subject.causal)])
    x, near, far = vectors(trial.size("batch", (2,)), length), _tokens(0, length), _tokens(shift, length)
    y, moved = (layer(x, Context(t, subject.causal, positions=positions))[0] for t in (near, far))
    trial.close(moved, y, what="the result at shifted places")


def _plain(case: Case) -> torch.nn.Module:
    """Return a norm as it starts, without a scale of its own."""
    module: torch.nn.Module = case.part.build(site_of())
    return module.double()


@row(26, "any scale becomes 1, each token on its own", kinds=("norm",), places=once)
@torch.no_grad()
def any_scale_becomes_one(subject: Subject, trial: Trial) -> None:
    batch, length = trial.size("batch", (4,)), trial.size("length", (5,))
    module, x = _plain(subject.case), 3 * vectors(batch, length) + 1
    y = module(x)
    trial.within(float(y.square().mean(-1).sub(1).abs().max()), 1e-2, "the mean square's distance from 1", y.shape)
    # Its eps alone keeps the two apart.
    trial.close(module(x * 1e4), module(x * 1e6), torch.float32, "the result of vectors 100 times as long")
    tokens = torch.stack([module(token) for token in x.flatten(0, 1)]).unflatten(0, (batch, length))
    trial.close(y, tokens, what="a token on its own")
    centered = bool(y.mean(-1).abs().max() < 1e-10)
    shifted = error(module(x + 7), y) <= TOLERANCE[torch.float64]
    trial.holds(centered == shifted, "a norm that centers sees a shift, or one that does not is blind to it")


@row(26, "constant and zero rows stay finite", kinds=("norm",), places=once)
def constant_and_zero_rows(subject: Subject, trial: Trial) -> None:
    for dtype in TOLERANCE:
        module = shaken(subject.case.part.build(site_of()), dtype=dtype)
        x = torch.stack([torch.full((D_MODEL,), value) for value in (0.0, 1.0, -3e4, 1e-6)]).to(dtype)
        y = module(x.requires_grad_())
        trial.finite(y, what=f"a constant row in {dtype}")
        trial.finite(*gradients(y, x, *module.parameters()), what=f"the gradient of a constant row in {dtype}")


@row(26, "each token on its own, unless `mixes_tokens`", kinds=("feedforward",), places=once)
def each_token_on_its_own(subject: Subject, trial: Trial) -> None:
    batch, length = trial.size("batch", (2,)), trial.size("length", (7,), least=2)
    layer, x = sublayer(subject.case), vectors(batch, length).requires_grad_()
    y = layer(x, context(x))[0]
    t = length // 2
    (found,) = torch.autograd.grad(y[:, t].sum(), x, retain_graph=True)
    found[:, t] = 0
    mixes = bool(subject.case.cls.mixes_tokens)
    wrong = "no neighbour reaches a token, and `mixes_tokens` is declared" if mixes else "a token reaches a neighbour"
    trial.holds(bool(found.any()) == mixes, wrong)
    if not mixes:
        trial.holds(not layer.declared(), "it mixes no tokens, and declares a state")
        order = torch.randperm(length)
        trial.close(layer(x[:, order], context(x))[0], y[:, order], what="the result of tokens in another order")


@row(7, "heads do not read padding", kinds=("head",), places=once)
@torch.no_grad()
def heads_do_not_read_padding(subject: Subject, trial: Trial) -> None:
    batch, length = trial.size("batch", (4,)), trial.size("length", (11,), least=2)
    per_token = subject.case.cls.per_token
    head = subject.build()[-1]  # type: ignore[index]
    hidden, counts = vectors(batch, length), [length, trial.place(1, length - 1), 1, 0][:batch]
    for side in ("left", "right", "inner"):
        wide, mask = padded(hidden, side, counts)
        got, want = head(wide, mask), head.reference(wide, mask)
        trial.finite(got)
        trial.close(got, want)
        for b, count in enumerate(counts[:3]):
            alone = head(hidden[b : b + 1, :count])[0]
            mine = got[b][mask[b].bool()] if per_token else got[b]
            trial.close(mine, alone, what=f"the logits of a row padded ({side})")
        if not per_token:
            other = head(wide.masked_fill(mask.unsqueeze(2) == 0, 77.0), mask)
            trial.equal(other, got, "the result of other padding")


def _projects(subject: Subject) -> bool:
    return subject.build()[-1].projection() is not None  # type: ignore[index]


@row(2, "the projection of a head is what it computes", kinds=("head",), places=partial(only, _projects, once),
     excuse=lambda cls: "projection: it gives none")  # fmt: skip
@torch.no_grad()
def a_head_s_projection(subject: Subject, trial: Trial) -> None:
    head = subject.build()[-1]  # type: ignore[index]
    hidden = vectors(trial.size("batch", (2,)), trial.size("length", (5,)))
    logits = torch.nn.functional.linear(head.features(hidden), *head.projection())
    cap = head.soft_cap
    trial.close(logits if cap is None else cap * torch.tanh(logits / cap), head(hidden))
