"""Choose options: a component is proven with those that it declares for it, and with others found by their names."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..core.attention import Headed
from ..core.component import KINDS, Part, Site
from ..core.heads import HeadsConfig
from ..core.initialise import unallocated
from ..core.scaling import Scaling
from ..errors import PluginError

D_MODEL = 36  # 6 heads of 6: even, for what turns pairs, and no multiple of 8
NARROW = 12  # where cost is counted: what grows with the square of length shows early; and where gradients are
MAX_SEQ_LEN = 199

# What an option of this name is set to, required or not, so that small inputs reach every path.
SMALL: dict[str, Any] = {
    "n_heads": 6,
    "window": 5,
    "block": 4,
    "n_window": 2,
    "vocab_size": 37,
    "image_size": 6,
    "patch_size": 3,
    "n_classes": 5,
    "d_ff": 22,
    "rate": 0.4,
}

# Other values that an option of this name is tried with; all values of a Literal and a bool are tried without being
# listed.
OTHERS: dict[str, tuple[Any, ...]] = {
    "n_kv_heads": (2,),
    "bias": (("q", "v", "out"),),
    "head_dim": (10,),
    "gate": ("joint", True),
    "scale": (0.3,),
    "window": (8, 1),
    "block": (3,),
    "n_global": (2, 0),
    "n_window": (1,),
    "n_random": (2,),
    "stride": (2,),
    "seed": (5,),
    "kernel": (3, 1),
    "d_hidden": (7,),
    "fraction": (0.67,),
    "theta": (100.0,),
    "scaling": (
        Scaling(kind="llama3", factor=3.0, trained=40, slow=0.5),
        Scaling(kind="yarn", factor=3.0, trained=40, fast=8.0, magnitude=1.0, truncate=False),  # a turn keeps lengths
        Scaling(kind="linear", factor=3.0),
        Scaling(kind="longrope", trained=300, short=(1.0, 2.0, 5.0), long=(1.0, 2.0, 9.0), magnitude=1.0),
    ),
    "soft_cap": (2.0,),
    "query_scalar": (10.0,),
    "max_distance": (41,),
    "std": (0.3,),
    "eps": (1e-3,),
    "channels": (2,),
    "rate": (0.6,),
    "n_types": (3,),
    "width": (10,),
    "offset": (2,),
    "segments": (3,),
    "clamp": (9,),
    "label_smoothing": (0.2,),
    "z_loss": (0.05,),
}

# Kinds whose constructor takes a site and nothing else, so that options can be tried on it.
SITED = ("attention", "position", "norm", "feedforward", "embedding")

Options = tuple[tuple[str, Any], ...]


class _Parts(dict[str, Part]):
    """Hold parts by name, as a choice of options that can be told from others."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


@dataclass(frozen=True)
class Case:
    """A component with one choice of options, in the order that they were given."""

    cls: type[Any]
    options: Options
    label: str

    def __str__(self) -> str:
        return f"{self.cls.name}-{self.label}"

    @functools.cached_property
    def config(self) -> Any:
        """Return the options as the component's own dataclass."""
        return self.cls.Config(**dict(self.options))

    @property
    def part(self) -> Part:
        """Return the case as what a spec's choice becomes."""
        return Part(self.cls, self.config)

    def without(self, name: str) -> Case:
        """Return the case with one option left at its default."""
        kept = tuple((key, value) for key, value in self.options if key != name)
        return Case(self.cls, kept, labelled(kept))


def with_option(case: Case, name: str, value: Any) -> Case:
    """Return a case with one option set."""
    options = tuple((dict(case.options) | {name: value}).items())
    return Case(case.cls, options, labelled(options))


def labelled(options: Options) -> str:
    """Return the label of a case that is named by its options."""
    return ",".join(f"{name}={_short(value)}" for name, value in options) or "defaults"


def cases_of(cls: type[Any], every: bool = True) -> tuple[Case, ...]:
    """Return a component with several choices of options, the one that most rows run with first.

    That one is the first of the class's `trials`, or small values of the options that `SMALL` knows; then come the
    other trials, many options changed at once, and with `every` each of them alone. A guess that the class refuses is
    left out; what it declares itself in `trials` is not.

    Raises:
        PluginError: a required option has no known value and the class declares no `trials`, or it refuses those.
    """
    return _cases(cls, every)  # type: ignore[arg-type]  # a class is hashable


@functools.cache
def _cases(cls: type[Any], every: bool) -> tuple[Case, ...]:
    base, *declared = _declared(cls)
    found = {case.options: case for case in (base, *declared)}
    for case in _guessed(cls, dict(base.options), every):
        if case.options not in found and fits(case):
            found[case.options] = case
    return tuple(found.values())


def _declared(cls: type[Any]) -> list[Case]:
    options = {f.name: f for f in dataclasses.fields(cls.Config)}
    trials: tuple[Mapping[str, Any], ...] = getattr(cls, "trials", ())
    given = [dict(trial) for trial in trials] or [{name: known for name in options if (known := _small(cls, name))}]
    missing = [name for name, field in options.items() if _required(field) and name not in given[0]]
    if missing:
        raise PluginError(
            f"{cls.kind} '{cls.name}': the suite knows no value of its required {', '.join(missing)}: declare options "
            f"to prove it with, `trials = ({{{missing[0]!r}: ...}},)`, on the class"
        )
    cases = []
    for place, trial in enumerate(given):
        chosen = tuple(trial.items())
        cases.append(Case(cls, chosen, labelled(chosen) if place else "base"))
        try:
            _build(cases[-1])
        except (ValueError, TypeError) as refused:
            raise PluginError(
                f"{cls.kind} '{cls.name}': it refuses {labelled(chosen)} (d_model {D_MODEL}, max_seq_len "
                f"{MAX_SEQ_LEN}): {refused}; declare other options to prove it with in `trials` on the class"
            ) from None
    return cases


def _small(cls: type[Any], name: str) -> Any:
    """Return a small value of an option: that which its name is known by, or one part where it is a map of parts."""
    from .companions import companions

    if name in SMALL or not _required(cls.Config.__dataclass_fields__[name]):
        return SMALL.get(name)
    kinds = [
        getattr(each, "__metadata__", ("",))[0]
        for each in get_args(get_type_hints(cls.Config, include_extras=True)[name])
    ]
    if not kinds or kinds[-1] not in KINDS:
        return None
    plain = (each for each in companions(kinds[-1]) if not any(map(_required, dataclasses.fields(each.Config))))
    part = next(each for each in plain if each is not cls)
    return _Parts(head=Part(part, part.Config()))


def _guessed(cls: type[Any], base: dict[str, Any], every: bool) -> Iterator[Case]:
    others = {f.name: values for f in dataclasses.fields(cls.Config) if (values := _others(cls, f.name, base))}
    if not others:
        return
    yield from _together(cls, base, others)
    for name, values in others.items():
        if name in HeadsConfig.__dataclass_fields__ or not every:
            continue  # the shell's own options are the same code in every mechanism: tried together
        for value in values:
            yield Case(cls, tuple((base | {name: value}).items()), f"{name}={_short(value)}")


def _together(cls: type[Any], base: dict[str, Any], others: Mapping[str, tuple[Any, ...]]) -> Iterator[Case]:
    """Yield as many options changed at once as the class takes, then those that it took not with these, until none is
    left; and the shell's own alone, which another option may lead away from the kernels."""
    left, label = list(others), "all"
    while left:
        taken: list[str] = []
        for name in left:
            if fits(_changed(cls, base, others, [*taken, name], label)):
                taken.append(name)
        if not taken:
            return
        yield _changed(cls, base, others, taken, label)
        left, label = [name for name in left if name not in taken], "rest"
    shell = [name for name in others if name in HeadsConfig.__dataclass_fields__ and name != "query_scalar"]
    if shell and len(shell) < len(others):
        yield _changed(cls, base, others, shell, "heads", which=-1)


def _changed(
    cls: type[Any],
    base: dict[str, Any],
    others: Mapping[str, tuple[Any, ...]],
    names: list[str],
    label: str,
    which: int = 0,
) -> Case:
    return Case(cls, tuple((base | {name: others[name][which] for name in names}).items()), label)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _others(cls: type[Any], name: str, base: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what else an option may be."""
    from .companions import bases

    hint = get_type_hints(cls.Config, include_extras=True)[name]
    default = base.get(name, cls.Config.__dataclass_fields__[name].default)
    choices = next((each for each in (hint, *get_args(hint)) if get_origin(each) is Literal), None)
    if choices is not None and (choices is hint or name not in OTHERS):
        return tuple(value for value in get_args(choices) if value != default)
    if hint is bool:
        return (not default,)
    marks = getattr(hint, "__metadata__", ())
    if marks and marks[0] != "attention":  # a part that changes each token on its own: a norm of q and k
        return ([case for case in bases(marks[0]) if not getattr(case.cls, "mixes_tokens", False)][-1].part,)
    return OTHERS.get(name, ())


def fits(case: Case) -> bool:
    """Say whether a component takes a choice of options."""
    try:
        _build(case)
    except (ValueError, TypeError):
        return False
    return True


def _build(case: Case) -> None:
    """Make a case's config, and build it where its kind allows, without allocating anything."""
    made = case.config is not None
    if made and case.cls.kind in SITED:
        with unallocated():
            case.part.build(site_of(case))


def site_of(case: Case | None = None, **facts: Any) -> Site:
    """Return a site of the suite's width; with an attention's case, its heads are those that positions serve."""
    site = Site(d_model=D_MODEL, max_seq_len=MAX_SEQ_LEN, n_layers=2, n_heads=6, head_dim=6).but(**facts)
    if case is not None and isinstance(case.config, Headed):
        n_heads, head_dim = case.config.heads(site.d_model)
        site = site.but(n_heads=n_heads, head_dim=head_dim)
    return site


def _short(value: object) -> str:
    return value.name if isinstance(value, Part) else str(value)
