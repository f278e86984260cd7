"""What authors import, `transom.core`: few names, documented with the shapes of their tensors, cheap to import."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from transom import core
from transom.core.component import KINDS, Component
from transom.registry import hookspecs

# A shape: dimensions in brackets, such as (B, T, C), (..., C), (B or 1, T, S), (V,); or none, a scalar.
SHAPE = re.compile(r"\((?:\.\.\.|(?:batch|B|C|K|N|T|V|[1-9])\b(?: or 1)?)(?:, ?[^()]*)?\)|\bscalar\b")


def exported() -> dict[str, Any]:
    """Return what is exported by name."""
    return {name: getattr(core, name) for name in core.__all__}


def hung(cls: type[Any]) -> dict[str, type[Any]]:
    """Return the types of ours that hang on a contract, by their name there; its options are no type of its own."""
    found = inspect.getmembers(cls, lambda item: inspect.isclass(item) and item.__module__.startswith("transom."))
    return {name: item for name, item in found if not name.startswith("_") and name != "Config"}


def documented() -> dict[str, Any]:
    """Return every class and function that an author meets, by the name that it is reached by."""
    found = exported()
    for name, item in list(found.items()):
        if inspect.isclass(item):
            found |= {f"{name}.{key}": cls for key, cls in hung(item).items()}
    return found


def functions(name: str, item: Any) -> Iterator[tuple[str, Any]]:
    """Yield a function, or the public methods and properties of a class that are ours, with their names."""
    if not inspect.isclass(item):
        yield name, item
        return
    for base in item.__mro__:
        if base.__module__.startswith("transom."):
            for key, value in vars(base).items():
                function = getattr(value, "fget", None) or getattr(value, "__func__", value)
                if inspect.isfunction(function) and (not key.startswith("_") or key == "__getitem__"):
                    yield f"{name}.{key}", function


EVERY = documented()
FUNCTIONS = dict(pair for name, item in EVERY.items() for pair in functions(name, item))
# `map` and `once` take a function of the author's: what it gives is for the author to say.
SHAPED = {
    name: function
    for name, function in FUNCTIONS.items()
    if re.search(r"\b(Tensor|Memories)\b", str(inspect.signature(function)))
    and name.split(".")[-1] not in ("map", "once")
}


def lacking(function: Any) -> str:
    """Say what the docstring of a function on tensors lacks; nothing where it is whole."""
    about = function.__doc__ or ""
    if not about.strip():
        return "a docstring"
    return "" if SHAPE.search(about) else "the shape of a tensor"


def test_there_are_at_most_twenty_names_and_all_kinds_among_them() -> None:
    assert len(core.__all__) <= 20
    assert sorted(core.__all__) == list(core.__all__)
    kinds = {item.kind for item in exported().values() if inspect.isclass(item) and issubclass(item, Component)}
    assert kinds == set(KINDS)
    assert set(core.__all__) <= set(dir(core))
    with pytest.raises(AttributeError, match=r"'transom\.core' has no attribute 'Mechanisms'"):
        core.Mechanisms  # noqa: B018


@pytest.mark.parametrize("name", EVERY)
def test_each_type_says_what_it_is_for(name: str) -> None:
    about = EVERY[name].__doc__ or ""
    assert len(about.split()) >= 4, f"{name} has no docstring"
    assert not about.startswith(f"{EVERY[name].__name__}("), f"{name} has the docstring that a dataclass makes up"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_method_has_a_docstring(name: str) -> None:
    assert (FUNCTIONS[name].__doc__ or "").strip(), f"{name} has no docstring"


@pytest.mark.parametrize("name", SHAPED)
def test_methods_on_tensors_say_their_shapes(name: str) -> None:
    assert not lacking(SHAPED[name]), f"{name} lacks {lacking(SHAPED[name])}: {SHAPED[name].__doc__}"


def test_methods_on_tensors_are_found() -> None:
    assert {
        "Mechanism.forward",
        "Norm.forward",
        "Head.projection",
        "Topology.take",
        "softmax_attention",
    } <= SHAPED.keys()


@pytest.mark.parametrize("about", ["", "Return the tensor.", "Return x (see above).", "Return (x, state)."])
def test_a_docstring_without_shapes_is_found(about: str) -> None:
    def forward() -> None: ...

    forward.__doc__ = about
    assert lacking(forward)
    for shape in ("(B, T, C)", "(B or 1, T, S)", "(..., C)", "(V,)", "(B, T, ...)", "a scalar"):
        forward.__doc__ = f"Return x {shape}."
        assert not lacking(forward)


def test_each_hook_is_documented() -> None:
    hooks = {name: hook for name, hook in vars(hookspecs).items() if hasattr(hook, f"{hookspecs.PROJECT}_spec")}
    assert "transom_components" in hooks
    assert all(len((hook.__doc__ or "").split()) >= 4 for hook in hooks.values())


def test_types_hang_on_their_contracts() -> None:
    assert set(hung(core.Embedding)) == {"Input"}
    assert set(hung(core.Objective)) == {"CrossEntropyConfig", "Loss", "Prepared", "Vocabulary"}
    assert set(hung(core.Data)) == {"Example", "ImageField", "LabelField", "TextField", "Tokenizer"}
    assert set(hung(core.Topology)) == {"Graph", "Output", "Stack", "StackRole", "State", "Watch"}
    assert set(hung(core.Head)) == {"Borrowed"}


def test_importing_the_room_imports_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from transom import core; core.Data; print(dir(core)[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
