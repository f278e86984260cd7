"""Let pytest prove components: `pytest --transom acme` adds a test for each row, component and place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # torch is imported once there is something to prove, and not in every run of pytest
    from .report import Outcome
    from .runner import Item

MARK = "transom"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what says which components are proven, and how thoroughly."""
    group = parser.getgroup("transom", "conformance of Transom's components")
    group.addoption(
        "--transom", action="append", default=[], metavar="NAME",
        help="prove the components of a package (acme; transom: the built-in ones) or one (local, acme/ring)",
    )  # fmt: skip
    group.addoption("--transom-profile", choices=("quick", "full"), default="full", help="how many options are tried")
    group.addoption("--transom-seed", type=int, default=0, metavar="N", help="the seed of all that is drawn")


def pytest_configure(config: pytest.Config) -> None:
    """Name the mark that every added test bears, so that `-m transom` runs them alone."""
    config.addinivalue_line("markers", f"{MARK}: a row of the conformance suite, on one component at one place")


@pytest.hookimpl(tryfirst=True)  # before what `-k` and `-m` leave out is left out
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the tests of every component that was asked for."""
    proofs: dict[str, dict[str, list[Item]]] = {}
    for name in dict.fromkeys(config.getoption("--transom")):
        for package, component, proof in proofs_of(name, config):
            proofs.setdefault(package, {}).setdefault(component, []).append(proof)
    for package, components in proofs.items():
        items += session.genitems(Package.from_parent(session, name=package, nodeid=package, components=components))


def proofs_of(name: str, config: pytest.Config) -> Iterator[tuple[str, str, Item]]:
    """Yield what there is to prove under a name, each with the names of its package and component.

    Raises:
        pytest.UsageError: nothing is called so, or it declares what can't be checked.
    """
    from ..errors import TransomError
    from .companions import name_of
    from .runner import items

    try:
        for item in items(name, profile=config.getoption("transom_profile"), seed=config.getoption("transom_seed")):
            if item.subject is not None:
                yield *name_of(item.cls), item
    except TransomError as error:
        raise pytest.UsageError(f"--transom {name}: {error}") from error


class Package(pytest.Collector):
    """The components of one package that are proven."""

    def __init__(self, *, components: dict[str, list[Item]], **given: Any) -> None:
        super().__init__(**given)
        self.components = components

    def collect(self) -> Iterator[pytest.Collector]:
        """Yield a collector for each component."""
        for name, proofs in self.components.items():
            yield Proven.from_parent(self, name=name, proofs=proofs)


class Proven(pytest.Collector):
    """One component."""

    def __init__(self, *, proofs: list[Item], **given: Any) -> None:
        super().__init__(**given)
        self.proofs = proofs

    def collect(self) -> Iterator[pytest.Item]:
        """Yield a test for each check at each place."""
        for proof in self.proofs:
            yield RowItem.from_parent(self, name=f"row{proof.row.number}[{proof.label}]", proof=proof)


class Broken(Exception):
    """Say that a row does not hold."""


class RowItem(pytest.Item):
    """One check of a row on one component at one place."""

    def __init__(self, *, proof: Item, **given: Any) -> None:
        super().__init__(**given)
        self.proof = proof
        self.outcome: Outcome | None = None
        self.add_marker(MARK)

    def runtest(self) -> None:
        """Run the check."""
        self.outcome = self.proof.run()
        if self.outcome.status == "failed":
            raise Broken(str(self.outcome))
        if self.outcome.figure is not None:
            self.user_properties.append(("figure", f"{self.outcome.figure:.1e} of {self.outcome.allowance:.2g}"))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Say what failed, and at which smallest input, without a traceback of the suite."""
        return str(excinfo.value) if excinfo.errisinstance(Broken) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Return where the check is written, and what it is called."""
        code = self.proof.row.check.__globals__["__file__"]
        return Path(code), 0, f"{self.proof.component} {self.name}"
