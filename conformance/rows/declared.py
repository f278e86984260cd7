"""Row 0: what is declared is done, what is lacked can't be, and specs are refused accordingly."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ...core.attention import ABILITIES
from ...core.choice import Choices
from ...core.heads import MultiHeadAttention
from ...core.tokens import Permuted, Tokens
from ...errors import InputError, SpecError
from ..cases import Case
from ..companions import bases, composes, has_heads_for, hooked
from ..places import able, base, directed, everywhere
from ..registered import row
from ..specs import Draft, needs
from ..stacks import across, position, run, scores, stack, sublayer, vectors
from ..subjects import Subject
from ..trial import Trial, error

LENGTH = 29


def _causal(case: Case) -> bool:
    x = vectors(1, LENGTH).requires_grad_()
    (found,) = torch.autograd.grad(run(stack([case], causal=True), x)[:, 7].sum(), x)
    return bool(found[:, 7].any()) and not found[:, 8:].any()


def _two_sided(case: Case) -> bool:
    x = vectors(1, LENGTH).requires_grad_()
    (found,) = torch.autograd.grad(run(stack([case], causal=False), x)[:, 7].sum(), x)
    return bool(found[:, :7].any() and found[:, 8:].any())


def _cross(case: Case) -> bool:
    layer = sublayer(case, causal=False, cross=True)
    x = vectors(1, LENGTH)
    seen = []
    for _ in range(2):
        here = across(x, vectors(1, 7))
        seen.append(layer(x, here, layer.prime(here))[0])
    return isinstance(layer, MultiHeadAttention) and not torch.equal(*seen)


def _documents(case: Case) -> bool:
    model = stack([case], causal=able(case, "causal"))
    x, doc = vectors(1, LENGTH), (torch.arange(LENGTH) >= 11).long()[None]
    apart = torch.cat([run(model, x[:, :11]), run(model, x[:, 11:])], dim=1)
    return error(run(model, x, document_ids=doc), apart) < 1e-10


def _pairs(case: Case) -> bool:
    x, order = vectors(1, LENGTH).requires_grad_(), torch.randperm(LENGTH)[None]
    model = stack([case], causal=not able(case, "two_sided"))
    (found,) = torch.autograd.grad(run(model, x, permuted=Permuted(order + 1))[:, 7].sum(), x)
    late = (order > order[:, 7:8])[0]
    return bool(late.any() and found[:, 7].any()) and not found[:, late].any()


def _hook(case: Case, hook: str) -> bool:
    x, causal = vectors(1, LENGTH), able(case, "causal")
    plain = run(stack([case], causal=causal), x)
    with_it = [run(stack([case], positions=[p], causal=causal), x) for p in hooked(hook) if has_heads_for(case, p)]
    changed = [not torch.equal(y, plain) for y in with_it]
    return all(changed) if able(case, hook) else any(changed)


# `compile` is put to the proof by row 18.
PROBES: dict[str, Callable[[Case], bool]] = {
    "causal": _causal,
    "two_sided": _two_sided,
    "cross": _cross,
    "documents": _documents,
    "rotate": lambda case: _hook(case, "rotate"),
    "score": lambda case: _hook(case, "score"),
    "pairs": _pairs,
}
assert {*PROBES, "compile"} == ABILITIES.keys()


@row(0, "an attention can what it says, and lacks what it says", kinds=("attention",), places=base)
def abilities(subject: Subject, trial: Trial) -> None:
    declares = subject.case.cls.declares
    for ability, probe in PROBES.items():
        if ability in declares.can:
            trial.holds(probe(subject.case), f"it declares that it can {ABILITIES[ability]}, and does not: {ability!r}")
            continue
        try:
            does = probe(subject.case)
        except (NotImplementedError, AssertionError, RuntimeError, AttributeError, LookupError, InputError):
            trial.holds(ability in declares.lacks, f"{ability!r}, declared to be of no effect, fails")
        else:
            trial.holds(not does, f"it can {ABILITIES[ability]}: declare {ability!r}")


@row(0, "what it chooses by content it says", kinds=("attention",), places=directed)
@torch.no_grad()
def choices(subject: Subject, trial: Trial) -> None:
    module, inputs = subject.build(), subject.inputs(2, LENGTH)
    expected = 1 if subject.case.cls.chooses else 0
    for reference in (False, True):
        made = Choices()
        subject.call(module, *inputs, reference=reference, choices=made)
        way = "the reference" if reference else "`forward`"
        trial.holds(
            len(made.chosen) == expected,
            f"{way} calls `context.choose` {len(made.chosen)} times, and `chooses` is {subject.case.cls.chooses!r}",
        )
        for chosen in made.chosen:
            trial.holds(
                chosen.dtype == torch.int64 and chosen.shape[:2] == (2, LENGTH),
                "what is chosen is not of (B, T, ..., N) int64", chosen.shape,
            )  # fmt: skip


@row(0, "specs compose, unless an ability is lacked", kinds=("attention",), places=base)
def composing(subject: Subject, trial: Trial) -> None:
    lacks = subject.case.cls.declares.lacks
    for chosen in (None, *bases("position")):
        for topology in bases("topology"):
            draft = Draft(subject.case, position=chosen, topology=topology)
            needed = needs(topology.cls) | (set() if chosen is None else chosen.cls.hooks & {"rotate", "score"})
            reasons = [lacks[need] for need in sorted(needed & lacks.keys())]
            if chosen is not None and not reasons and not composes(subject.case, chosen):
                reasons.append("a mixer, has none of these")
            what = f"a spec that needs {', '.join(sorted(needed & lacks.keys()))} composes"
            if reasons:
                says = [*reasons, subject.case.cls.name]
                trial.raises(SpecError, partial(draft.model, device="meta"), what, says)
            else:
                trial.holds(draft.model(device="meta"), "a spec does not compose")


@row(0, "a position has its hooks and no others", kinds=("position",), places=base)
def hooks(subject: Subject, trial: Trial) -> None:
    module = position(subject.case)
    x, tokens = vectors(1, 3), Tokens(torch.arange(3)[None])
    q = x.unflatten(-1, (6, 6))
    calls: dict[str, Callable[[], object]] = {
        "add": lambda: module.add(x, tokens),
        "rotate": lambda: module.rotate(q, tokens),
        "score": lambda: scores(module, tokens, tokens, q, q),
    }
    for hook, call in calls.items():
        if hook in subject.case.cls.hooks:
            trial.holds(call() is not None, f"the hook {hook!r} is declared, and gives nothing")
        else:
            trial.raises(NotImplementedError, call, f"the hook {hook!r} works: declare it", [hook])


@row(0, "an embedding's inputs are what it takes", kinds=("embedding",), places=everywhere)
def an_embedding_s_inputs(subject: Subject, trial: Trial) -> None:
    module = subject.build()
    declared = module.inputs()  # type: ignore[operator]
    trial.holds(declared, "it declares no inputs")
    for put in declared.values():
        trial.holds(put.dims[0] == "batch", "an input does not begin with the batch")
        trial.holds(put.dtype in ("int64", "float"), f"an input has an unknown dtype {put.dtype!r}")
        trial.holds(put.dtype != "int64" or put.high > 0, "an input of ids declares no `high`")
    read = any("sequence" in put.dims for put in declared.values())
    trial.holds(read == subject.case.cls.maskable, "`maskable` is not that it reads a sequence of tokens")
    if module.vocab_size is not None:
        table = module.table()  # type: ignore[operator]
        trial.holds(table.shape[0] == module.vocab_size, "the table has not `vocab_size` rows", table.shape)
