"""What every component has in common: its kind, its options and the place that it is built for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .inputs import Input

if TYPE_CHECKING:
    from .moves import Layouts

KINDS = ("attention", "position", "norm", "feedforward", "embedding", "head", "topology", "objective", "data")
API = 1
"""The version of the contracts in `core`, which the module of a package names as `TRANSOM_API` to be loaded."""


class Component:
    """Stand at the root of the nine kinds; each kind's contract is an abstract child of this class.

    A component class names its options in a frozen dataclass `Config`, nested in it. Its name in a spec follows from
    the class: `LocalAttention` is `local`; a class whose name can't say it sets `name`.

    `lowers`: by target, `onnx` or `ort`, the name of the method that stands in for `forward` while a graph is exported
    for it, with the same arguments: for a fused form that PyTorch's own has not, or that only some runtimes have (see
    `torch.onnx.ops.symbolic` for operators that torch does not know). It must give the same numbers. Without one, a
    graph gets what `forward` does while it is exported: its reference, where lengths decide between paths.

    `trials`: sets of options that the conformance suite proves it with, besides those that it finds itself; the first
    is what most rows run with. The suite's `d_model` is 36 (12 in some rows) and its `max_seq_len` 199.

    What was published stays readable. `since`: option -> the version of its package that brought it. `renamed`: an
    option's old name -> its new one; specs with the old one go on working, with a note. `gone`: an option that is no
    more -> what to do instead, a clause that follows a colon; specs with it are refused with that. `renamed_weights`:
    the old name of a parameter or submodule within the component -> its new one; old checkpoints go on loading.
    """

    kind: ClassVar[str]
    name: ClassVar[str]
    Config: ClassVar[type[Any]]
    lowers: ClassVar[Mapping[str, str]] = {}
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    since: ClassVar[Mapping[str, str]] = {}
    renamed: ClassVar[Mapping[str, str]] = {}
    gone: ClassVar[Mapping[str, str]] = {}
    renamed_weights: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def build(cls, config: Any, *where: Any) -> Any:
        """Build the component for one place: `where` is what its kind's constructor takes besides its options."""
        return cls(config, *where)  # type: ignore[call-arg]

    def declines(self, target: str) -> str:
        """Say why its `forward` stays in a graph where `lowers` offers a method for `target`; empty where it does not.

        For options and places that an operator does not take: a clause that stands in `transom.json`.
        """
        return ""

    def layouts(self) -> Layouts:
        """Say how published checkpoints lay the parameters out: layout's name -> parameter's name -> move.

        The first layout counts where a spec names none. Published names are relative to the place of the module there;
        a parameter that a layout leaves out has its own name. Parameters of submodules count, by their dotted names.
        """
        return {}

    def reads(self) -> Mapping[str, Input]:
        """Declare raw inputs of its own: for layers and positions, which find them in `Tokens.marks`.

        One number a token: (batch, sequence) int64, optional, since a call that leaves one out means zeros.
        """
        return {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = spec_name(cls)


def spec_name(cls: type) -> str:
    """Return the name in a spec that follows from a component class's name (`GluFeedForward` gives `glu`)."""
    stem = re.sub(f"(?i:{getattr(cls, 'kind', '')})$", "", cls.__name__) or cls.__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", stem).lower()


@dataclass(frozen=True, kw_only=True)
class Site:
    """Say what the surroundings of a component fix: every component is built as `cls(config, site)`.

    `causal`: tokens may not see later ones. `cross`: keys and values come from a memory. `n_layers`: depth of the
    stack, for initial scales. `layer`: place of the block in it, from 1. `n_heads`, `head_dim`: of the attentions that
    a position serves.
    """

    d_model: int
    max_seq_len: int
    causal: bool = True
    cross: bool = False
    n_layers: int = 1
    layer: int = 1
    n_heads: int = 1
    head_dim: int = 1

    def but(self, **changes: Any) -> Site:
        """Return this site with some of its facts changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Part:
    """Name a component that was chosen, with its options: what a spec's `{kind: local, window: 64}` becomes."""

    cls: type[Any]
    config: Any

    @property
    def name(self) -> str:
        """The component's name as errors and `transom show` print it."""
        return str(self.cls.name)

    def build(self, *where: Any) -> Any:
        """Build the component for one place in the model: `where` is its site, and what else its kind takes."""
        return self.cls.build(self.config, *where)
