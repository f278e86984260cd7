"""Finds components by kind and name among the installed packages, importing only those that are asked for."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from ..core.component import API, KINDS, Component
from ..errors import PluginError
from .containment import Refusal, contained, reason
from .hookspecs import Hooks
from .marks import nearest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "transom"
BUILT_IN = "transom"
VARIABLE = "TRANSOM_PLUGINS"

ComponentClass: TypeAlias = type[Any]


class UnknownName(PluginError):
    """Say that no installed package has a component of this name."""


@dataclass(frozen=True)
class Installed:
    """Describe a package that brings components, from its metadata alone; `barred`: why it may not load, if so."""

    name: str
    distribution: str
    version: str
    module: str
    barred: str = ""

    @property
    def release(self) -> str:
        """The distribution and its version: `acme-parts 1.2`."""
        return f"{self.distribution} {self.version}"

    @property
    def allowed(self) -> bool:
        """Say whether it may load."""
        return not self.barred


class Registry:
    """Hold the components of a set of entry points; a package is imported when one of its names is first asked for.

    `allowed`: names of the packages that may be imported besides the built-in one (`None`: all). `blocked`: names of
    those that may not, whatever else is said.
    """

    def __init__(
        self, found: Iterable[EntryPoint], allowed: Iterable[str] | None = None, blocked: Iterable[str] = ()
    ) -> None:
        self._allowed = None if allowed is None else {BUILT_IN, *allowed}
        self._blocked = set[str]()
        self._found: dict[str, list[EntryPoint]] = {}
        for point in found:
            self._found.setdefault(point.name, []).append(point)
        self._loaded: dict[str, dict[tuple[str, str], ComponentClass]] = {}
        self._refused: dict[str, PluginError] = {}
        self._names: dict[ComponentClass, str] = {}
        for name in blocked:
            self.block(name)

    def block(self, package: str) -> None:
        """Refuse a package from now on; raise `PluginError` for Transom's own, without which nothing works."""
        if package == BUILT_IN:
            raise PluginError(f"package '{BUILT_IN}' can't be blocked: it brings Transom's own components")
        self._blocked.add(package)

    def get(self, kind: str, name: str) -> ComponentClass:
        """Return the component class of a kind that a spec calls `name` (`local`, or `acme/ring` from package `acme`).

        Raise `UnknownName` where there is none, `PluginError` where its package can't be used.
        """
        package, slash, bare = name.rpartition("/")
        if slash and package == BUILT_IN:
            raise UnknownName(f"built-in components have bare names: write '{bare}'")
        components = self._package(package if slash else BUILT_IN)
        if (kind, bare) in components:
            return components[kind, bare]
        others = [other for other in KINDS if (other, bare) in components]
        known = [self._names[cls] for (other, _), cls in components.items() if other == kind]
        hint = f" ('{name}' is {_article(others[0])})" if others else nearest(name, known)
        raise UnknownName(f"no {kind} named '{name[:100]}'{hint}")

    def names(self, kind: str, everything: bool = False) -> list[str]:
        """Return the names of a kind's built-in components; those of all allowed packages with `everything`."""
        packages = [package for package in self._found if not self._bar(package)] if everything else [BUILT_IN]
        found = [self._package(package) for package in dict.fromkeys([BUILT_IN, *packages])]
        return sorted(self._names[cls] for classes in found for (other, _), cls in classes.items() if other == kind)

    def components(self, package: str) -> list[ComponentClass]:
        """Return the component classes of a package, by kind and name; raise `PluginError` where it can't be used."""
        found = self._package(package)
        return [found[key] for key in sorted(found, key=lambda key: (KINDS.index(key[0]), key[1]))]

    def full_name(self, cls: ComponentClass) -> str:
        """Return what a spec calls a component class; raise KeyError for one that no package here brings."""
        if cls not in self._names:  # another registry has handed it out
            for name in [name for name, points in self._found.items() if any(map(partial(_brings, cls), points))]:
                with suppress(PluginError):
                    self._package(name)
        return self._names[cls]

    def package(self, cls: ComponentClass) -> Installed | None:
        """Return the package that brought a component class which this registry handed out; None for a built-in."""
        name = self._names[cls].rpartition("/")[0]
        return self._installed(self._found[name][0]) if name else None

    def installed(self) -> list[Installed]:
        """List the packages that bring components, importing none."""
        return [self._installed(point) for name in sorted(self._found) for point in self._found[name]]

    def _installed(self, point: EntryPoint) -> Installed:
        return Installed(point.name, *_distribution(point), point.value, self._bar(point.name))

    def _bar(self, package: str) -> str:
        """Say what keeps a package from loading; nothing where it may."""
        if package in self._blocked:
            return f"-p no:{package} blocks it"
        return "" if self._allowed is None or package in self._allowed else f"{VARIABLE} does not allow it"

    def _package(self, package: str) -> dict[tuple[str, str], ComponentClass]:
        if package in self._found and self._bar(package):
            way = "leave that out" if package in self._blocked else "add it there"
            raise PluginError(f"package '{package}' is installed, but {self._bar(package)}: {way}")
        if package in self._refused:
            raise self._refused[package]
        if package not in self._loaded:
            try:
                self._loaded[package] = self._load(self._entry_point(package))
            except PluginError as error:
                self._refused[package] = error
                raise
        return self._loaded[package]

    def _entry_point(self, package: str) -> EntryPoint:
        points = self._found.get(package, [])
        if not points and package == BUILT_IN:
            raise PluginError("Transom itself is not installed: its entry point is missing (pip install it)")
        if not points:
            hint = nearest(package, [name for name in self._found if name != BUILT_IN]) or " (there is none)"
            raise UnknownName(f"no installed package '{package[:100]}' brings components{hint}")
        if len(points) > 1:
            both = " and ".join(f"{_distribution(point)[0]} ({point.value})" for point in points)
            raise PluginError(f"two distributions bring the package name '{package}': {both}; uninstall one")
        return points[0]

    def _load(self, point: EntryPoint) -> dict[tuple[str, str], ComponentClass]:
        who = f"package '{point.name}' ({_distribution(point)[0]}, {point.value})"
        if point.name == BUILT_IN:
            try:  # here, unwatched: it is what others are watched for, and it imports torch, which is not there yet
                classes = _classes(point)
            except (Exception, SystemExit) as error:
                raise PluginError(f"{who} {reason(error)}") from error
        else:
            if BUILT_IN in self._found:
                self._package(BUILT_IN)  # with it all that a package could change is there to be watched
            classes = contained(lambda: _classes(point), _module(point), who)
        components: dict[tuple[str, str], ComponentClass] = {}
        for cls in classes:
            check_component(cls, who)
            key = (cls.kind, cls.name)
            if key in components:
                both = " and ".join(f"{one.__module__}.{one.__qualname__}" for one in (components[key], cls))
                raise PluginError(f"{who} has two components of kind {cls.kind} named '{cls.name}': {both}")
            if cls in self._names:
                raise PluginError(f"{who} gives {cls.__qualname__}, which is already '{self._names[cls]}'")
            components[key] = cls
        for (_, name), cls in components.items():
            self._names[cls] = name if point.name == BUILT_IN else f"{point.name}/{name}"
        return components


def _classes(point: EntryPoint) -> list[Any]:
    """Import a package, and return what it gives for component classes.

    Raises:
        Refusal: it is for another API, or implements the hook wrongly or not at all; and whatever it raises itself.
    """
    package = point.load()
    check_api(getattr(package, "TRANSOM_API", None), point)
    hooks = Hooks()  # one a package, so that a broken one leaves nothing behind
    hooks.register(package, name=point.name)
    hooks.check_pending()
    given = hooks.hook.transom_components()
    if not given:
        raise Refusal("brings no components: it should implement the hook transom_components")
    return [cls for answer in given for cls in answer]


def check_api(declared: object, point: EntryPoint) -> None:
    """Raise `Refusal` where the API that a package was written for is not the one that this Transom has."""
    if type(declared) is not int:
        what = "declares no API version" if declared is None else f"declares TRANSOM_API = {declared!r}"
        raise Refusal(f"{what}; this Transom offers {API}: write TRANSOM_API = {API} in {_module(point)}")
    distribution = _distribution(point)[0]
    if declared != API:
        older = "Transom" if declared > API else distribution
        raise Refusal(f"was written for API {declared}, and this Transom offers {API}: install a newer {older}")


def check_component(cls: object, who: str) -> None:
    """Raise `PluginError` where a class that a package gives can't be a component; `who` names the package."""
    if not (isinstance(cls, type) and issubclass(cls, Component)):
        raise PluginError(f"{who} gives {cls!r}, which is not a component class")
    here = f"{who}: {cls.__module__}.{cls.__qualname__}"
    if getattr(cls, "kind", None) not in KINDS:
        raise PluginError(f"{here} is of no kind; kinds are {', '.join(KINDS)}")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
        raise PluginError(f"{here} is abstract: it still needs {missing}")
    if not re.fullmatch(r"[A-Za-z0-9_]+", str(cls.name)) or cls.name == "none":
        raise PluginError(f"{here} has the name '{cls.name}'; letters, digits and _ are allowed, `none` is taken")
    config = getattr(cls, "Config", None)
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise PluginError(f"{here} needs a frozen dataclass named Config, for its options")
    params: Any = vars(config).get("__dataclass_params__") or getattr(config, "__dataclass_params__")  # noqa: B009
    if not params.frozen:
        raise PluginError(f"{here}.Config must be frozen: write @dataclass(frozen=True, kw_only=True)")
    if any(field.name == "kind" for field in dataclasses.fields(config)):
        raise PluginError(f"{here}.Config has an option named kind, which names the component in a spec")
    _check_history(cls, {field.name for field in dataclasses.fields(config)}, here)


def _check_history(cls: ComponentClass, options: set[str], here: str) -> None:
    """Raise `PluginError` where what a component says of its options over time is not so."""
    there = [("since", name) for name in cls.since] + [("renamed", name) for name in cls.renamed.values()]
    past = [("renamed", name) for name in cls.renamed] + [("gone", name) for name in cls.gone]
    wrong = [f"{where} speaks of '{name}', which is no option" for where, name in there if name not in options]
    wrong += [f"{where} speaks of '{name}', which is one still" for where, name in past if name in options]
    if wrong:
        raise PluginError(f"{here}: {'; '.join(wrong)}")


def _brings(cls: ComponentClass, point: EntryPoint) -> bool:
    """Say whether a class may be of the package that an entry point stands for, by where both are written."""
    return point.module.partition(".")[0] == cls.__module__.partition(".")[0]


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def _module(point: EntryPoint) -> str:
    """Return the module that an entry point names, which may name something in it too."""
    return point.value.partition(":")[0].strip()


def _distribution(point: EntryPoint) -> tuple[str, str]:
    """Return the name and the version of the distribution that declares an entry point."""
    return (point.dist.name, point.dist.version) if point.dist else ("of no distribution", "")


@functools.cache
def default() -> Registry:
    """Return the registry of everything installed here, as `TRANSOM_PLUGINS` (a comma list) narrows it."""
    from importlib.metadata import entry_points  # which brings half of the standard library with it

    listed = os.environ.get(VARIABLE)
    allowed = None if listed is None else [name.strip() for name in listed.split(",") if name.strip()]
    return Registry(entry_points(group=GROUP), allowed)


def get(kind: str, name: str) -> ComponentClass:
    """Return an installed component class (see `Registry.get`)."""
    return default().get(kind, name)


def names(kind: str, everything: bool = False) -> list[str]:
    """Return the names of a kind's components (see `Registry.names`)."""
    return default().names(kind, everything)


def installed() -> list[Installed]:
    """List the installed packages that bring components, importing none."""
    return default().installed()
