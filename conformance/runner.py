"""Prove components: find them, run their rows, and make what fails small."""

from __future__ import annotations

import functools
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch

from ..core.component import Component
from ..errors import PluginError
from ..registry.manager import BUILT_IN, UnknownName, default
from .cases import Case
from .companions import name_of
from .refusal import refuse_unprovable
from .registered import TITLES, Profile, Row, rows_of
from .report import Outcome, Report
from .shrink import Shrinker
from .subjects import Subject
from .trial import Trial


def check(
    component: str | type[Any], *, profile: Profile = "quick", rows: Collection[int] = (), seed: int = 0,
    each: Callable[[Outcome], None] = lambda _: None,
) -> Report:  # fmt: skip
    """Prove a component, or all of a package, and return what came out.

    component: a name as in a spec (`local`, `acme/ring`), a package (`acme`; `transom` is the built-in one) or a
    component class, registered or not. profile: "quick" tries few options, "full" all. rows: the numbers of the rows to
    run, all when empty. seed: of everything that is drawn. each: called with every outcome as it comes.

    Raises:
        UnknownName: no installed component, package or row is called so.
        PluginError: a class declares what can't be checked, or its package can't be loaded.
    """
    outcomes = []
    for item in items(component, profile=profile, rows=rows, seed=seed):
        outcomes.append(item.run())
        each(outcomes[-1])
    return Report(tuple(outcomes), TITLES, profile, seed)


@dataclass(frozen=True)
class Item:
    """One check on one subject, or on none where the component declares that the row does not apply: `excuse`."""

    row: Row
    cls: type[Any]
    subject: Subject | None
    excuse: str = ""
    seed: int = 0

    @property
    def component(self) -> str:
        """Return the component's name as a spec says it."""
        package, name = name_of(self.cls)
        return name if package == BUILT_IN else f"{package}/{name}"

    @property
    def label(self) -> str:
        """Return what tells this item from the component's others: `chunks-window=5-causal`."""
        return f"{self.row.name}-{self.subject}"

    def run(self) -> Outcome:
        """Run the check; on a failure, find the smallest input that fails alike."""
        began = time.monotonic()
        make = functools.partial(
            Outcome,
            component=self.component, kind=self.cls.kind, number=self.row.number, title=self.row.title,
            check=self.row.name, subject=str(self.subject or ""),
        )  # fmt: skip
        if self.subject is None:
            return make(status="declared", reason=self.excuse)
        trial, error = self.attempt(self.subject, {})
        worst = trial.worst
        found = functools.partial(
            make, measured=worst.what if worst else "", figure=worst.found if worst else None,
            allowance=worst.allowed if worst else None, exact=trial.exact, ties=trial.ties,
        )  # fmt: skip
        if error is None:
            assert trial.exact or worst, f"{self.label}: a check that measures nothing proves nothing"
            return found(status="passed", seconds=time.monotonic() - began)
        shrinker = Shrinker(self._fails, self.subject.case, error, dict(trial.sizes), trial.least)
        shrinker.shrink()
        return found(status="failed", reason=described(error), smallest=str(shrinker), seconds=time.monotonic() - began)

    def _fails(self, case: Case, sizes: Mapping[str, int]) -> Exception | None:
        assert self.subject is not None
        return self.attempt(self.subject.of(case), sizes)[1]

    def attempt(self, subject: Subject, sizes: Mapping[str, int]) -> tuple[Trial, Exception | None]:
        """Run the check with these sizes in place of those that it draws; return the trial and how it fails."""
        seed = zlib.crc32(f"{self.seed}:{self.row.number}:{self.row.name}:{self.component}:{self.subject}".encode())
        trial = Trial(seed, sizes)
        with _alone(seed):
            try:
                self.row.check(subject, trial)
            except Exception as error:
                return trial, error
        return trial, None


@contextmanager
def _alone(seed: int) -> Iterator[None]:
    """Seed the CPU's generator, and put it back; on one thread, as the tensors are too small for a second to pay."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def described(error: Exception) -> str:
    """Return what a failure says: of an error that no check foresaw, also its type and the line that raised it."""
    if isinstance(error, AssertionError) and str(error):
        return str(error)
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = f" ({last.tb_frame.f_code.co_filename}:{last.tb_lineno})" if last else ""
    return f"{type(error).__name__}: {error}{where}"


def items(
    component: str | type[Any], *, profile: Profile = "quick", rows: Collection[int] = (), seed: int = 0
) -> Iterator[Item]:
    """Yield everything that `check` runs, in its order. Raise as it does."""
    unknown = sorted(set(rows) - TITLES.keys())
    if unknown:
        raise UnknownName(f"no row {unknown[0]}; rows are {', '.join(map(str, TITLES))}")
    for cls in classes(component):
        refuse_unprovable(cls)
        for row in rows_of(cls, rows):
            if row.profile == "full" and profile == "quick":
                continue
            subjects = row.subjects(cls, profile)
            yield from (Item(row, cls, subject, seed=seed) for subject in subjects)
            if not subjects:
                yield Item(row, cls, None, row.excuse(cls) or "nothing that is built in composes with it", seed)


def classes(component: str | type[Any]) -> list[type[Any]]:
    """Return the classes that a name, a package or a class stands for, by kind and name."""
    if not isinstance(component, str):
        if not (isinstance(component, type) and issubclass(component, Component)):
            raise PluginError(f"{component!r} is no component class, nor the name of one")
        return [component]
    packages = [package.name for package in default().installed()]
    if component in packages:
        return default().components(component)
    package, slash, bare = component.rpartition("/")
    if slash and package not in packages:
        raise UnknownName(f"no installed package '{package[:100]}' brings components{_near(package, packages)}")
    known = default().components(package if slash else BUILT_IN)
    found = [cls for cls in known if cls.name == bare]
    if not found:
        names = [*(default().full_name(cls) for cls in known), *packages]
        raise UnknownName(f"no component or package '{component[:100]}'{_near(component, names)}")
    return found


def _near(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
