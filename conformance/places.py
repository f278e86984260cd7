"""Say where each row puts a component: from its choices of options to the subjects that the row runs on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..core.attention import Mechanism
from .cases import Case
from .companions import bases, composes, forgets_marks, is_mechanism, token_head
from .subjects import Subject

Cases = Sequence[Case]


def once(cases: Cases) -> Iterator[Subject]:
    """Put each choice of options where its kind stands."""
    return (Subject(case) for case in cases)


def base(cases: Cases) -> Iterator[Subject]:
    """Take the first choice of options alone."""
    return once(cases[:1])


def everywhere(cases: Cases) -> Iterator[Subject]:
    """Put each choice at every place that it can take: both directions, across, under each hook."""
    for case in cases:
        if case.cls.kind == "attention":
            yield from directed([case])
            yield from crossing([case])
        elif case.cls.kind == "position":
            yield from (Subject(case, causal, hook=h) for causal in (True, False) for h in sorted(case.cls.hooks))
        else:
            yield Subject(case)


def base_everywhere(cases: Cases) -> Iterator[Subject]:
    """Put the first choice at every place that it can take."""
    return everywhere(cases[:1])


def able(case: Case, ability: str) -> bool:
    """Say whether an attention declares that it can do something."""
    return ability in case.cls.declares.can


def directed(cases: Cases) -> Iterator[Subject]:
    """Put each attention in each direction that it can run in."""
    for case in cases:
        yield from (Subject(case, way == "causal") for way in ("causal", "two_sided") if able(case, way))


def only(
    keep: Callable[[Subject], object], places: Callable[[Cases], Iterator[Subject]], cases: Cases
) -> Iterator[Subject]:
    """Put each choice where `places` does, and keep the subjects that a check has something to measure on."""
    return (subject for subject in places(cases) if keep(subject))


def mechanism(subject: Subject) -> bool:
    """Say whether a subject is the inner part of multi-head attention."""
    return is_mechanism(subject.case)


def unless_mechanism(cls: type[Any]) -> str:
    """Excuse an attention that owns its projections from what is asked of queries, keys and values."""
    return "" if issubclass(cls, Mechanism) else "it is a mixer: no queries, keys and values are handed to it"


def base_directed(cases: Cases) -> Iterator[Subject]:
    """Put the first choice in each direction that it can run in."""
    return directed(cases[:1])


def causal(cases: Cases) -> Iterator[Subject]:
    """Put each attention where tokens may not see later ones."""
    return (Subject(case) for case in cases if able(case, "causal"))


def two_sided(cases: Cases) -> Iterator[Subject]:
    """Put each attention where tokens see both sides."""
    return (Subject(case, causal=False) for case in cases if able(case, "two_sided"))


def crossing(cases: Cases) -> Iterator[Subject]:
    """Put each attention across a memory."""
    return (Subject(case, cross=True) for case in cases if able(case, "cross"))


def directed_costs(cases: Cases) -> Iterator[Subject]:
    """Put an attention in each direction; of a mixer the first choice alone, whose options are widths."""
    return directed(cases if is_mechanism(cases[0]) else cases[:1])


def hooks(cases: Cases) -> Iterator[Subject]:
    """Put each position under each of its hooks."""
    return (Subject(case, hook=hook) for case in cases for hook in sorted(case.cls.hooks))


def hook_of(name: str, cases: Cases) -> Iterator[Subject]:
    """Put each position under one hook, where it has that."""
    return (subject for subject in hooks(cases) if subject.hook == name)


def paired(cases: Cases) -> Iterator[Subject]:
    """Put an attention's first choice with each position, or each choice of a position with each attention; both ways.

    What does not compose is left out: its refusal is proven with what is declared.
    """
    if cases[0].cls.kind == "attention":
        pairs = [(cases[0], position) for position in bases("position")]
    else:
        pairs = [(attention, case) for case in cases for attention in bases("attention")]
    for attention, position in pairs:
        if composes(attention, position):
            for place in directed([attention]):
                if place.causal and forgets_marks(attention, position):
                    continue
                mine, other = (attention, position) if cases[0].cls.kind == "attention" else (position, attention)
                yield Subject(mine, place.causal, beside=other)


def causal_pairs(cases: Cases) -> Iterator[Subject]:
    """Take the pairs where tokens may not see later ones."""
    return (subject for subject in paired(cases) if subject.causal)


def two_sided_pairs(cases: Cases) -> Iterator[Subject]:
    """Take the pairs where tokens see both sides."""
    return (subject for subject in paired(cases) if not subject.causal)


def pair(subject: Subject) -> tuple[Case, Case]:
    """Return the attention and the position of a subject of `paired`."""
    if subject.beside is None:
        raise ValueError("the subject stands alone")
    return (subject.case, subject.beside) if subject.kind == "attention" else (subject.beside, subject.case)


def with_heads(cases: Cases) -> Iterator[Subject]:
    """Put each topology with each head that it can read: any, where it is not asked for the next token."""
    for case in cases:
        heads = [token_head()] if case.cls.generates else bases("head")
        yield from (Subject(case, beside=head) for head in heads)
