"""Row 19: a component runs in ONNX Runtime as it does in PyTorch, its state included."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ...deploy import export
from ...deploy.report import Report
from ...errors import ExportError
from ...registry.compose import compose
from ...registry.spec import Spec, dump_spec
from ..cases import Case, cases_of
from ..companions import bases, composes, hooked, token_head
from ..places import Cases
from ..registered import row
from ..specs import Draft, needs
from ..stacks import shaken
from ..subjects import Subject
from ..trial import Failure, Trial

EXPORTED = ("attention", "position", "norm", "feedforward", "embedding", "head", "topology")
PLACEMENTS = ("pre", "post", "sandwich", "parallel", "parallel_norms")


def _topologies(case: Case) -> list[Case]:
    """Return the topologies that an attention can stand in."""
    return [t for t in bases("topology") if needs(t.cls) <= case.cls.declares.can]


def _small(cases: Cases) -> Iterable[Subject]:
    """Put a component in one model; an attention where it can stand first."""
    if cases[0].cls.kind != "attention":
        return [Subject(cases[0])]
    return [_in(cases[0], topology) for topology in _topologies(cases[0])[:1]]


def _others(cases: Cases) -> Iterable[Subject]:
    """Put an attention in each other topology that it can stand in."""
    return [_in(cases[0], topology) for topology in _topologies(cases[0])[1:]]


def _in(attention: Case, topology: Case) -> Subject:
    return Subject(attention, causal="two_sided" not in needs(topology.cls), beside=topology)


@row(19, "one small model", kinds=EXPORTED, places=_small)
def a_small_model(subject: Subject, trial: Trial) -> None:
    _exported(subject, trial)


@row(19, "in every topology", kinds=("attention",), places=_others, profile="full",
     excuse=lambda cls: "" if _stands_in_several(cls) else "one topology alone takes it")  # fmt: skip
def every_topology(subject: Subject, trial: Trial) -> None:
    _exported(subject, trial)


def _stands_in_several(cls: type[Any]) -> bool:
    return len(_topologies(cases_of(cls)[0])) > 1


def _exported(subject: Subject, trial: Trial) -> None:
    draft, layers = _draft(subject)
    try:
        report = _report(_Same(draft.spec(layers)))
    except ExportError as refused:
        raise Failure(f"the export fails: {refused}") from refused
    trial.holds(len(report.rows) >= 3, "fewer than three shapes were compared")
    for case in report.rows:
        trial.within(case.error, case.allowed, f"{case.worst} in {case.provider}, {case.case}")


def _draft(subject: Subject) -> tuple[Draft, list[dict[str, Any]]]:
    """Return a model for a component: one layer, or one of each placement where its topology is to be proven."""
    case, kind = subject.case, subject.kind
    parts: dict[str, Case | None] = {"position": hooked("add")[0]}
    layers: list[dict[str, Any]] = [{}]
    if kind == "attention":
        parts = {"position": next(p for p in bases("position") if composes(case, p)), "topology": subject.beside}
    elif kind == "position":
        parts = {}
    elif kind == "head" and not case.cls.per_token:
        parts |= {"topology": next(t for t in bases("topology") if not t.cls.generates)}
    elif kind == "embedding" and not case.cls.maskable:
        encoder = next(t for t in bases("topology") if not t.cls.generates)
        parts |= {"topology": encoder, "head": next(h for h in bases("head") if not h.cls.per_token)}
    elif kind == "topology":
        parts |= {"head": token_head()}
        layers = [{"placement": placement} for placement in PLACEMENTS]
        layers += [{"placement": "pre", "residual": "after"}]
    return Draft(case, **parts), layers


class _Same:
    """Hold a spec so that equal ones are known: an export takes seconds, and some models come again."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def __hash__(self) -> int:
        return hash(dump_spec(self.spec))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.spec == other.spec


@functools.lru_cache(maxsize=64)
def _report(same: _Same) -> Report:
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        return export(shaken(compose(same.spec)).float(), Path(folder, "out"))
