"""Loads a package where it can't hang or end Python, and where what it changes for everybody is seen and put back."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Generic, TypeVar

from ..errors import PluginError

SECONDS = 60.0
SECONDS_VARIABLE = "TRANSOM_PLUGIN_SECONDS"
ROOT = __name__.partition(".")[0]
# Besides these: every module of Transom that is loaded, and every class that one of them defines.
NAMESPACES = ("torch", "torch.nn", "torch.nn.functional", "torch.nn.init", "torch:Tensor", "torch.nn:Module")

Result = TypeVar("Result")


class Refusal(PluginError):
    """Say why a package is refused, in words that follow its name."""


@dataclass(frozen=True)
class Setting:
    """Watch a global setting of a module, which is left alone while that is not imported; `get` gives what `==` tells.

    Some hold for one thread alone.
    """

    name: str
    module: str
    get: Callable[[Any], Any]
    put: Callable[[Any, Any], object]


def _plain(state: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a state of numpy's generator with its words as a list, which can be compared."""
    return (state[0], state[1].tolist(), *state[2:])


SETTINGS = (
    Setting("Python's random numbers", "random", lambda _: random.getstate(), lambda _, value: random.setstate(value)),
    Setting(
        "numpy's random numbers",
        "numpy",
        lambda numpy: _plain(numpy.random.get_state()),
        lambda numpy, value: numpy.random.set_state(value),
    ),
    Setting(
        "torch's random numbers",
        "torch",
        lambda torch: torch.get_rng_state().tolist(),
        lambda torch, value: torch.set_rng_state(torch.tensor(value, dtype=torch.uint8, device="cpu")),
    ),
    Setting(
        "torch's default dtype",
        "torch",
        lambda torch: torch.get_default_dtype(),
        lambda torch, value: torch.set_default_dtype(value),
    ),
    Setting(
        "torch's default device",
        "torch",
        lambda torch: torch.get_default_device(),
        # Not the CPU by name, which would send every call through a mode.
        lambda torch, value: torch.set_default_device(None if value.type == "cpu" else value),
    ),
    Setting(
        "torch's number of threads",
        "torch",
        lambda torch: torch.get_num_threads(),
        lambda torch, value: torch.set_num_threads(value),
    ),
    Setting(
        "torch's grad mode",
        "torch",
        lambda torch: torch.is_grad_enabled(),
        lambda torch, value: torch.set_grad_enabled(value),
    ),
    Setting(
        "torch's deterministic mode",
        "torch",
        lambda torch: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        lambda torch, value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    ),
    Setting(
        "torch's precision of matrix products",
        "torch",
        lambda torch: torch.get_float32_matmul_precision(),
        lambda torch, value: torch.set_float32_matmul_precision(value),
    ),
    Setting(
        "torch's anomaly mode",
        "torch",
        lambda torch: torch.is_anomaly_enabled(),
        lambda torch, value: torch.autograd.set_detect_anomaly(value),
    ),
)


def contained(work: Callable[[], Result], module: str, who: str) -> Result:
    """Return what `work` gives, which loads the package `who` (as an error names it) from the module `module`.

    It runs in a thread of its own, for `seconds()` at most. Watched are SETTINGS, NAMESPACES, every loaded module of
    Transom and every class in one: attributes that are replaced, deleted, or added (but for modules, and names that a
    module gives lazily). All that was changed is put back, and modules of a refused package are forgotten, so that
    another registry meets the same error. Where the package raises or changes something, the error says so.

    Not watched: what it does later (when a component is built or runs), filters of warnings (libraries add some when
    they are imported), other libraries, environment variables, files. Changes that other threads make meanwhile are
    taken for the package's. A package that ends the process (`os._exit`, a fault in C) takes Transom with it;
    `transom plugins --load` tries each in a process of its own.

    Raises:
        PluginError: it raises, SystemExit and KeyboardInterrupt included, does not end in time, or changes something.
    """
    limit, known = seconds(), set(sys.modules)
    names, settings = Namespaces(module), Settings()
    outcome = Outcome[Result]()
    thread = threading.Thread(target=outcome.run, args=(work,), name=f"loading {module}", daemon=True)
    try:
        thread.start()
        thread.join(limit)
    finally:  # after Ctrl-C, too
        hangs = thread.is_alive()
        if hangs:
            stop(thread)
        changes = [*names.undo(), *dict.fromkeys([*outcome.changes, *settings.undo()])]
        if hangs or changes or outcome.error is not None:
            forget(module, known)
    trouble = []
    if hangs:
        trouble.append(f"was still loading after {limit:g} s ({SECONDS_VARIABLE} sets how long it may)")
    elif outcome.error is not None:
        trouble.append(reason(outcome.error))
    if changes:
        trouble.append(f"changes what belongs to all when it is loaded (put back now): it {', '.join(changes)}")
    if trouble:
        raise PluginError(f"{who} {'; and '.join(trouble)}") from outcome.error
    return outcome.given[0]


def reason(error: BaseException) -> str:
    """Return what loading a package raised, in words that follow its name."""
    return str(error) if isinstance(error, Refusal) else f"can't be loaded: {type(error).__name__}: {error}"


@dataclass
class Outcome(Generic[Result]):
    """Hold what came of some work: what it gave or raised, and what it changed in the settings of its own thread."""

    given: list[Result] = field(default_factory=list)
    error: BaseException | None = None
    changes: list[str] = field(default_factory=list)

    def run(self, work: Callable[[], Result]) -> None:
        """Do the work, and note what comes of it."""
        settings = Settings()
        try:
            self.given.append(work())
        except BaseException as error:  # Ctrl-C reaches the main thread alone: this one is the package's own
            self.error = error
        self.changes += settings.undo()


class Settings:
    """Remember SETTINGS as this thread sees them."""

    def __init__(self) -> None:
        found = [(setting, sys.modules.get(setting.module)) for setting in SETTINGS]
        self.before = [(setting, module, setting.get(module)) for setting, module in found if module is not None]

    def undo(self) -> list[str]:
        """Put back what has changed, and say what it was."""
        changes = []
        for setting, module, before in self.before:
            if setting.get(module) != before:
                setting.put(module, before)
                changes.append(f"sets {setting.name}")
        return changes


class Namespaces:
    """Remember the attributes of the watched modules and classes, before the package of `module` is loaded."""

    def __init__(self, module: str) -> None:
        self.package = module.partition(".")[0]
        self.before = {name: (space, dict(vars(space))) for name, space in watched()}

    def undo(self) -> list[str]:
        """Put back what has changed, and say what it was."""
        changes = []
        for name, (space, before) in self.before.items():
            if isinstance(space, ModuleType) and sys.modules.get(name) is not space:
                sys.modules[name] = space
                changes.append(f"replaces the module {name}")
            changes += [f"{what} {name.replace(':', '.')}.{key}" for what, key in restore(space, before)]
        return changes + self._planted()

    def _planted(self) -> list[str]:
        """Forget modules of Transom that were loaded since and hold something of the package; say what."""
        changes = []
        for name, module in own_modules():
            if name in self.before:
                continue
            for key, value in vars(module).items():
                if str(getattr(value, "__module__", "")).partition(".")[0] == self.package:
                    changes.append(f"puts {name}.{key} in place")
                    sys.modules.pop(name, None)
        return changes


def watched() -> Iterator[tuple[str, Any]]:
    """Yield the modules and classes whose attributes are watched, by name; a class stands behind a colon."""
    for path in NAMESPACES:
        name, _, attribute = path.partition(":")
        module = sys.modules.get(name)
        if module is not None:
            yield path, getattr(module, attribute) if attribute else module
    for name, module in own_modules():
        yield name, module
        for key, value in list(vars(module).items()):
            if isinstance(value, type) and value.__module__ == name:
                yield f"{name}:{key}", value


def own_modules() -> list[tuple[str, ModuleType]]:
    """Return the modules of Transom that are loaded, by name."""
    return [(name, module) for name, module in sys.modules.items() if f"{name}.".startswith(f"{ROOT}.") and module]


def restore(space: Any, before: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Give a module or class the attributes that it had, and yield what was done to which."""
    now = dict(vars(space))
    for key, value in now.items():
        if key not in before and not isinstance(value, ModuleType):
            delattr(space, key)
            # A module that imports its names when they are first asked for gives the same again.
            if not isinstance(space, ModuleType) or getattr(space, key, None) is not value:
                yield "adds", key
    for key, value in before.items():
        if key not in now:
            setattr(space, key, value)
            yield "deletes", key
        elif now[key] is not value and not wraps(now[key], value):
            setattr(space, key, value)
            yield "replaces", key


def wraps(new: Any, old: object) -> bool:
    """Say whether a function is PyTorch's own wrapper of another: its compiler puts some in place when imported."""
    home = str(getattr(new, "__globals__", {}).get("__name__"))  # where its code is, whatever it says of itself
    return home.startswith("torch.") and getattr(new, "__wrapped__", None) is old


def forget(module: str, known: set[str]) -> None:
    """Take a package's modules that were not known before out of `sys.modules`."""
    package = module.partition(".")[0]
    for name in set(sys.modules) - known:
        if name.partition(".")[0] == package:
            del sys.modules[name]


def stop(thread: threading.Thread) -> None:
    """Ask a thread to end at its next step of Python, so that it costs nothing further; in C it goes on."""
    import ctypes  # seldom wanted

    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
    thread.join(0.5)


def seconds() -> float:
    """Return how many seconds a package may take to load; raise PluginError where the variable says no such number."""
    text = os.environ.get(SECONDS_VARIABLE, "")
    try:
        limit = float(text or SECONDS)
    except ValueError:
        limit = 0.0
    if not 0 < limit <= threading.TIMEOUT_MAX:
        raise PluginError(f"{SECONDS_VARIABLE} is '{text}': it should be a number of seconds above 0, such as 60")
    return limit
